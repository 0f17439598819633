"""LoRA with transformers' Trainer: `inject` on the model before it is handed over.

pip install transformers accelerate
python examples/transformers_trainer.py
"""

import copy
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from rankwise import LoRAConfig, inject, load_adapter, save_adapter

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def rows(n: int) -> list[dict[str, torch.Tensor]]:
    """Sentences of ten words; the label says whether the first word is in the vocabulary's upper half."""
    words = torch.randint(50, (n, 10))
    return [{"input_ids": row, "labels": (row[0] >= 25).long()} for row in words]


def main() -> dict[str, float]:
    set_seed(0)
    base = BertForSequenceClassification(BertConfig(**SIZES, num_labels=2))
    model, data = copy.deepcopy(base), rows(512)
    inject(model, LoRAConfig(r=8, target_modules=["query", "value", "dense", "classifier"]))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=4,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            logging_steps=16,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=rows(128))
        trainer.train()
        trained = trainer.evaluate()["eval_loss"]
        save_adapter(model, f"{folder}/adapter")
        load_adapter(base, f"{folder}/adapter")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    batch = torch.stack([row["input_ids"] for row in data[:8]])
    with torch.no_grad():
        difference = (base.eval()(batch).logits - model.eval()(batch).logits).abs().max()
    return {"first": losses[0], "last": losses[-1], "evaluated": trained, "difference": float(difference)}


if __name__ == "__main__":
    print(main())
