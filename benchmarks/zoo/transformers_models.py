"""Small random configurations of transformers: decoders, encoders, encoder-decoders, vision, audio, MoE, state-space.

Every model is made from its default configuration with the sizes of `SMALL`, where the configuration has them, and with
what its row in `MODELS` adds. Whatever is drawn at random in training is switched off.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import Entry

SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "decoder_vocab_size"), 64),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_dim", "emb_dim"), 32),
    **dict.fromkeys(("embedding_size", "decoder_hidden_size", "projection_dim", "dim_model", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "d_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size", "moe_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size", "dim_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "context_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_seq_len", "sliding_window", "attention_chunk_size"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_groups"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id", "cls_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("image_size", "input_size"), 32),
    "patch_size": 8,
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    "type_vocab_size": 2,
}
"""Name of a configuration's field -> a small value."""

RANDOM = ("drop", "jitter", "mask_time_prob", "mask_feature_prob", "mask_ratio", "noise")
"""A field whose name holds one of these and whose value is a number is set to zero."""


def _ids(batch: int = 2, length: int = 9, vocabulary: int = 60) -> Tensor:
    return torch.randint(3, vocabulary, (batch, length))


def text() -> dict[str, Tensor]:
    return {"input_ids": _ids()}


def text_pair() -> dict[str, Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(length=6)}


def image(size: int = 32, channels: int = 3) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, channels, size, size)}


def image_and_text(size: int = 32) -> Callable[[], dict[str, Tensor]]:
    return lambda: {**image(size)(), **text()}


def sound(samples: int = 2000) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_values": torch.randn(2, samples)}


def spectrum(bins: int, frames: int, bins_last: bool, **more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    shape = (2, frames, bins) if bins_last else (2, bins, frames)
    return lambda: {"input_features": torch.randn(shape), **{name: make() for name, make in more.items()}}


@dataclass(frozen=True)
class Row:
    """A model of transformers: its kind, the Auto class that makes it, what it reads, and fields of its own."""

    kind: str
    auto: str
    inputs: Callable[[], dict[str, Tensor]]
    fields: dict[str, Any] = field(default_factory=dict)


def _rows(kind: str, auto: str, inputs: Callable[[], dict[str, Tensor]], **models: dict[str, Any]) -> dict[str, Row]:
    return {name.replace("__", "-"): Row(kind, auto, inputs, fields) for name, fields in models.items()}


_MAMBA = {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
_SPEECH = {
    "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
}  # fmt: skip
_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}

MODELS: dict[str, Row] = {
    **_rows(
        "decoder", "AutoModelForCausalLM", text,
        gpt2={}, gpt_neo={"attention_types": [[["global", "local"], 1]], "window_size": 8}, gpt_neox={},
        gptj={"rotary_dim": 4}, gpt_bigcode={}, bloom={}, opt={"word_embed_proj_dim": 16}, codegen={"rotary_dim": 4},
        llama={}, mistral={}, gemma={}, gemma2={}, gemma3_text={}, qwen2={}, qwen3={}, phi={}, phi3={},
        falcon={}, mpt={}, stablelm={}, starcoder2={}, cohere={}, olmo={}, olmo2={}, granite={}, nemotron={"num_key_value_heads": 2, "head_dim": 8},
        glm={}, persimmon={}, biogpt={}, xglm={"attention_heads": 4}, ctrl={"dff": 48}, xlnet={}, smollm3={}, exaone4={},
        minicpm3={"num_key_value_heads": 4, "head_dim": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
            "v_head_dim": 8}, openai__gpt={}, cpmant={"dim_head": 8, "prompt_length": 4, "segment_types": 4},
    ),
    **_rows(
        "decoder", "AutoModelForCausalLM", lambda: {"input_ids": _ids(length=16)}, reformer={
            "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4], "attn_layers": ["local", "lsh"],
            "is_decoder": True, "num_buckets": 2, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
            "attention_head_size": 8, "feed_forward_size": 48, "hash_seed": 0,
        },
    ),
    **_rows(
        "MoE", "AutoModelForCausalLM", text,
        mixtral={}, qwen2_moe={}, qwen3_moe={}, olmoe={}, phimoe={}, granitemoe={}, jetmoe={"kv_channels": 8}, gpt_oss={
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        deepseek_v2={"num_experts_per_tok": 2, "num_key_value_heads": 4, "head_dim": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
        deepseek_v3={
            "num_key_value_heads": 4, "head_dim": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
        },
        ernie4_5_moe={"moe_num_shared_experts": 1}, llama4_text={"num_experts_per_tok": 1}, dots1={"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
        minimax={"block_size": 8},
    ),
    **_rows("MoE", "AutoModelForSeq2SeqLM", text_pair, switch_transformers={"num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1}, nllb__moe={"encoder_sparse_step": 2, "decoder_sparse_step": 2}),
    **_rows(
        "state space", "AutoModelForCausalLM", text,
        mamba={}, mamba2={"num_heads": 8}, falcon_mamba={}, rwkv={"attention_hidden_size": 32}, bamba={**_MAMBA, "attn_layer_indices": [1]},
        falcon_h1={**_MAMBA, "mamba_d_ssm": 64}, jamba={**_MAMBA, "num_hidden_layers": 4, "attn_layer_period": 2,
            "attn_layer_offset": 1}, lfm2={}, recurrent_gemma={"num_hidden_layers": 3},
        zamba2={**_MAMBA, "num_hidden_layers": 3, "n_mamba_heads": 8, "mamba_headdim": 8, "adapter_rank": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention"], "mamba_ngroups": 1},
        qwen3_next={"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]},
        granitemoehybrid={**_MAMBA, "layer_types": ["linear_attention", "full_attention"]},
        nemotron_h={"mamba_num_heads": 8, "mamba_head_dim": 8, "moe_shared_expert_intermediate_size": 48},
    ),
    **_rows(
        "encoder", "AutoModelForMaskedLM", text,
        bert={}, roberta={}, albert={}, distilbert={}, electra={}, deberta={}, deberta__v2={}, mpnet={},
        camembert={}, xlm={}, fnet={}, convbert={}, nystromformer={"num_landmarks": 3, "segment_means_seq_len": 9},
        mobilebert={"true_hidden_size": 16, "intra_bottleneck_size": 16}, squeezebert={}, longformer={
            "attention_window": 4}, big_bird={"attention_type": "original_full"}, esm={"mask_token_id": 3, "vocab_size": 64, "pad_token_id": 1},
        modernbert={}, roformer={}, rembert={"input_embedding_size": 16, "output_embedding_size": 16},
        funnel={"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8}, ibert={}, layoutlm={}, ernie={},
        megatron__bert={}, luke={"entity_vocab_size": 16, "entity_emb_size": 16}, data2vec__text={}, yoso={},
    ),
    **_rows("encoder", "AutoModel", text, canine={"num_hash_buckets": 64, "upsampling_kernel_size": 2,
        "downsampling_rate": 2, "local_transformer_stride": 4}),
    **_rows(
        "encoder-decoder", "AutoModelForSeq2SeqLM", text_pair,
        t5={}, mt5={}, umt5={}, bart={}, mbart={}, pegasus={}, marian={}, m2m_100={}, blenderbot={},
        blenderbot__small={}, longt5={}, led={"attention_window": 4, "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64}, prophetnet={"num_buckets": 8, "relative_max_distance": 16}, plbart={},
        mvp={}, fsmt={"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["en", "de"]}, pegasus_x={"block_size": 4},
        bigbird_pegasus={"attention_type": "original_full"},
    ),
    **_rows(
        "vision", "AutoModelForImageClassification", image(),
        vit={}, beit={}, dinov2={}, dinov2_with_registers={}, swin=_STAGES, swinv2=_STAGES,
        convnext={"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        convnextv2={"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        resnet={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        regnet={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        poolformer={"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
        segformer={"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 16},
        pvt={"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
        focalnet={"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3],
            "hidden_sizes": [8, 16]},
        mobilenet_v2={"depth_multiplier": 0.25},
        efficientnet={"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        mobilevit={"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32], "patch_size": 2},
        hiera={"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "query_stride": [2, 2],
            "masked_unit_size": [4, 4], "image_size": [32, 32], "patch_size": [7, 7], "num_query_pool": 1},
        bit={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4},
        cvt={"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
        data2vec__vision={}, vit_msn={}, ijepa={}, swiftformer={"embed_dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    **_rows("vision", "AutoModel", image(), deit={}),
    **_rows("vision", "AutoModel", image(64), levit={"hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1], "key_dim": [8, 8, 8], "image_size": 64, "patch_size": 16}, detr={
            "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4, "use_timm_backbone": False,
            "use_pretrained_backbone": False, "backbone": None, "backbone_config": {"model_type": "resnet",
                "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"]}},
        vit_mae={"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
            "image_size": 64}, yolos={"image_size": [64, 64], "num_detection_tokens": 4}),
    **_rows("vision and text", "AutoModel", image_and_text(),
        clip={"text_config": {}, "vision_config": {}}, siglip={"text_config": {}, "vision_config": {}},
        blip={"text_config": {}, "vision_config": {}}, vilt={"image_size": 32},
        chinese_clip={"text_config": {}, "vision_config": {}}, altclip={"text_config": {}, "vision_config": {}}),
    **_rows(
        "audio", "AutoModelForAudioClassification", sound(),
        wav2vec2=_SPEECH, hubert=_SPEECH, wavlm=_SPEECH, unispeech=_SPEECH, sew={**_SPEECH, "squeeze_factor": 2},
        wav2vec2__conformer=_SPEECH, data2vec__audio=_SPEECH,
    ),
    **_rows("audio", "AutoModelForAudioClassification", lambda: {"input_values": torch.randn(2, 32, 16)},
        audio__spectrogram__transformer={"max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8}),
    **_rows("audio", "AutoModelForAudioClassification", spectrum(16, 20, True),
        wav2vec2__bert={"feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3}),
    **_rows("audio", "AutoModelForSpeechSeq2Seq", spectrum(16, 32, False, decoder_input_ids=_ids),
        whisper={"num_mel_bins": 16, "max_source_positions": 16}),
    **_rows("audio", "AutoModelForSpeechSeq2Seq", spectrum(16, 32, True, decoder_input_ids=_ids),
        speech_to_text={"input_feat_per_channel": 16, "conv_channels": 16, "max_source_positions": 64}),
    **_rows("audio", "AutoModel", lambda: {"input_values": torch.randn(2, 1, 320)}, encodec={
        "num_filters": 4, "codebook_size": 8, "codebook_dim": 16, "hidden_size": 16, "upsampling_ratios": [4, 2]}),
    **_rows("audio", "AutoModelForSpeechSeq2Seq", lambda: {"input_values": torch.randn(2, 1200),
        "decoder_input_ids": _ids()}, moonshine={"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4,
        "decoder_num_key_value_heads": 4}),
    **_rows("time series", "AutoModel", lambda: {"past_values": torch.randn(2, 16, 3)},
        patchtst={"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4}),
}  # fmt: skip
"""`model_type` of transformers -> how a small one is made."""


def shrink(model_type: str, fields: dict[str, Any]) -> Any:
    """Return a configuration of this type with small sizes and nothing random."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    make = CONFIG_MAPPING[model_type]
    default = make()
    known = default.to_dict()
    parts = {
        name: shrink_part(getattr(default, name), fields[name])
        for name in ("text_config", "vision_config")
        if name in fields and name in known
    }
    return make(**{**_small_fields(known), **fields, **parts})


def shrink_part(default: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The same for a configuration inside another, as a dictionary."""
    return {**_small_fields(default.to_dict()), **fields, "model_type": default.model_type}


def _small_fields(known: dict[str, Any]) -> dict[str, Any]:
    small = {name: value for name, value in SMALL.items() if isinstance(known.get(name), int)}
    for name, value in known.items():
        if isinstance(value, float) and any(word in name for word in RANDOM):
            small[name] = 0.0
    return small


def make(model_type: str) -> nn.Module:
    """Make a small model of this type with random weights."""
    import transformers

    row = MODELS[model_type]
    return getattr(transformers, row.auto).from_config(shrink(model_type, row.fields))


def entries() -> list[Entry]:
    """Return the models."""
    return [_entry(model_type, row) for model_type, row in MODELS.items()]


def _entry(model_type: str, row: Row) -> Entry:
    return Entry(f"transformers/{model_type}", row.kind, lambda: make(model_type), row.inputs)
