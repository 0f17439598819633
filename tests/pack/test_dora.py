"""DoRA in packs: each adapter gets the updates of the real PEFT, trained alone with torch's AdamW."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from quantised_layers import Net, inputs
from rankwise.adapter_files import save_adapter
from rankwise.errors import PackError
from rankwise.lora import count_parameters
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.sweeps.attaching import put_on
from rankwise.sweeps.problem import Run
from rankwise.train.settings import Training
from reference import update_difference
from small_models import KINDS, call

STEPS = 10
NAMES = {
    "A": "lora_A.default.weight",
    "B": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}
TARGETS = {"mlp": ["up", "down"], "cnn": ["stem", "head"], "llama": ["q_proj", "v_proj", "down_proj"]}


def members(targets):
    def dora(r):
        return LoRAConfig(r=r, variant="dora", target_modules=targets)

    return [
        Member(name="r1", lora=dora(1)),
        Member(name="r3", lora=dora(3), seed=1),
        Member(name="r8", lora=dora(8)),
        Member(name="plain", lora=LoRAConfig(r=2, target_modules=targets)),
    ]


def their_tensors(theirs, start):
    """PEFT's own parameters by our keys."""
    parameters = dict(theirs.named_parameters())
    found = {}
    for key in start:
        module, _, which = key.rpartition(".")
        found[key] = parameters[f"base_model.model.{module}.{NAMES[which]}"]
    return found


def peft_alone(model, member, start, batches, kind, lr):
    config = LoraConfig(
        r=member.lora.r,
        lora_alpha=32,
        target_modules=member.lora.target_modules,
        use_dora=member.lora.variant == "dora",
    )
    theirs = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double()
    tensors = their_tensors(theirs, start)
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(start[key].view(tensor.shape))
    theirs.eval()
    optimiser = torch.optim.AdamW(tensors.values(), lr=lr, weight_decay=0.0)
    for batch in batches:
        optimiser.zero_grad()
        kind.loss(call(theirs, batch), batch).backward()
        optimiser.step()
    return {key: tensor.detach().view(start[key].shape) for key, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_updates_are_those_of_peft_alone(name):
    kind = KINDS[name]
    torch.manual_seed(0)
    model = kind.make().double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if hasattr(model, "config"):
        model.config.attention_dropout = 0.0
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0

    def wide(batch):
        return {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}

    batches = {seed: [wide(kind.batch(1000 * seed + step)) for step in range(STEPS)] for seed in (0, 1)}
    pack = Pack(model, members(TARGETS[name]), kind.loss, call=call)
    start = pack.states()
    with pack.attached(batches[0][0], training=True):
        for step in range(STEPS):
            batch = {key: torch.stack([batches[seed][step][key] for seed in pack.seeds]) for key in batches[0][0]}
            pack.step(batch, torch.full((4,), 1e-3, dtype=torch.float64), None, None)
    assert pack.notes == []
    for member in members(TARGETS[name]):
        assert any(key.endswith("magnitude") for key in start[member.name]) == (member.lora.variant == "dora")
        theirs = peft_alone(model, member, start[member.name], batches[member.seed], kind, 1e-3)
        assert update_difference(pack.states()[member.name], theirs, start[member.name]) <= 1e-10, member.name


def test_over_a_quantised_base_and_when_one_leaves():
    model, x = Net("nf4"), {"x": inputs()}
    all_members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, variant="dora")) for r in (1, 2)]
    pack = Pack(model, all_members, lambda y, batch: y.square().mean(), call=lambda m, b: m(b["x"]))
    both = {"x": inputs().unsqueeze(0)}
    with pack.attached(x, training=True):
        first = pack.step(both, torch.full((2,), 1e-2), None, None)
        pack.keep(torch.tensor([False, True]))
        for _ in range(5):
            last = pack.step(both, torch.full((1,), 1e-2), None, None)
    assert last < first[1]
    assert set(pack.states()["r2"]) == {f"{layer}.{key}" for layer in ("up", "down") for key in ("A", "B", "magnitude")}


def test_a_layer_that_dora_can_not_adapt_is_refused():
    model = torch.nn.Sequential(torch.nn.ConvTranspose1d(2, 3, 2))
    with pytest.raises(PackError, match=r'"0" can\'t be adapted by "a" in a pack: DoRA needs'):
        Pack(model, [Member(name="a", lora=LoRAConfig(variant="dora", target_modules="0"))], lambda y, b: y.mean())


def test_a_sweep_trains_and_saves_it(tmp_path):
    kind = KINDS["mlp"]
    torch.manual_seed(0)
    model = kind.make()
    member = Member(name="a", lora=LoRAConfig(r=2, variant="dora"))
    pack = Pack(model, [member], kind.loss, call=call)
    state = pack.states()["a"]
    run = Run(
        name="a",
        configuration="a",
        label="a",
        method="lora",
        member=member,
        training=Training(lr=1e-3, epochs=1, batch_size=2),
    )
    put_on(model, run, state, "saving")
    assert count_parameters(model, "saving") == sum(value.numel() for value in state.values())
    assert pack.members[0].parameter_count() == count_parameters(model, "saving")
    save_adapter(model, tmp_path, "saving")
