"""The training configuration of the released models, as far as audiocraft's builders read it.

The demo models and checkpoints of transformers have no `xp.cfg` of their own and are built with this one. Sources:
audiocraft's `config/model` and `config/solver`.
"""

from __future__ import annotations

from typing import Any


def configuration(
    *,
    text_encoder: str,
    melody: bool,
    stereo: bool,
    dim: int,
    num_heads: int,
    num_layers: int,
    hidden_scale: int = 4,
    card: int = 2048,
    separator: str | None = None,
    sample_rate: int = 32_000,
    window_seconds: int = 30,
    melody_hop: int | None = None,
    text_in_prefix: bool = True,
) -> dict[str, Any]:
    """Return the content of a language model's `xp.cfg`. `text_encoder` and `separator` are ids of repositories.

    Without a separator, a melody model uses the released one. Its chroma has one place for each `melody_hop` samples,
    4,096 in the released models, which also put the text before the codes; otherwise cross-attention reads the text.
    """
    conditioners: dict[str, Any] = {
        "description": {
            "model": "t5",
            "t5": {"name": text_encoder, "finetune": False, "word_dropout": 0.2, "normalize_text": False},
        }
    }
    if melody:
        chroma: dict[str, Any] = {
            "sample_rate": 32_000, "n_chroma": 12, "radix2_exp": 14, "argmax": True, "match_len_on_eval": False,
            "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None,
        }  # fmt: skip
        if separator is not None:
            chroma["separator"] = separator
        if melody_hop is not None:
            chroma["winhop"] = melody_hop
        conditioners = {"self_wav": {"model": "chroma_stem", "chroma_stem": chroma}, **conditioners}
    prepended = (["self_wav", "description"] if text_in_prefix else ["self_wav"]) if melody else []
    return {
        "lm_model": "transformer_lm",
        "device": "cpu",
        "dtype": "float16",
        "dataset": {"segment_duration": window_seconds},
        "channels": 2 if stereo else 1,
        "sample_rate": sample_rate,
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
        "transformer_lm": {
            "n_q": 8 if stereo else 4, "card": card, "dim": dim, "num_heads": num_heads, "num_layers": num_layers,
            "hidden_scale": hidden_scale, "dropout": 0.0, "emb_lr": None, "activation": "gelu", "norm_first": True,
            "bias_ff": False, "bias_attn": False, "bias_proj": False, "past_context": None, "causal": True,
            "custom": False, "memory_efficient": True, "attention_as_float32": False, "layer_scale": None,
            "positional_embedding": "sin", "xpos": False, "checkpointing": "none", "weight_init": "gaussian",
            "depthwise_init": "current", "zero_bias_init": True, "norm": "layer_norm", "cross_attention": False,
            "qk_layer_norm": False, "qk_layer_norm_cross": False, "attention_dropout": None, "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {
                "delays": [0, 0, 1, 1, 2, 2, 3, 3] if stereo else [0, 1, 2, 3], "flatten_first": 0,
                "empty_initial": 0,
            },
        },
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "attribute_dropout": {"args": {"active_on_eval": False}},
        "fuser": {
            "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [],
            "prepend": prepended,
            "cross": [] if "description" in prepended else ["description"],
            "input_interpolate": [],
        },
        "conditioners": {"args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}, **conditioners},
    }  # fmt: skip


def audiogen_codec_configuration(*, num_filters: int = 64, dimension: int = 128) -> dict[str, Any]:
    """Return the content of `xp.cfg` of AudioGen's codec: mono, 16 kHz, 50 frames per second, 4 codebooks."""
    return {
        "compression_model": "encodec",
        "device": "cpu",
        "channels": 1,
        "sample_rate": 16_000,
        "encodec": {
            "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}", "channels": "${channels}",
            "causal": False, "renormalize": False,
        },
        "seanet": {
            "dimension": dimension, "channels": "${channels}", "causal": "${encodec.causal}", "n_filters": num_filters,
            "n_residual_layers": 1, "ratios": [8, 5, 4, 2], "activation": "ELU", "activation_params": {"alpha": 1.0},
            "norm": "weight_norm", "norm_params": {}, "kernel_size": 7, "residual_kernel_size": 3,
            "last_kernel_size": 7, "dilation_base": 2, "pad_mode": "constant", "true_skip": True, "compress": 2,
            "lstm": 2, "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {
            "n_q": 4, "q_dropout": False, "bins": 2048, "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50,
            "threshold_ema_dead_code": 2, "orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False,
        },
    }  # fmt: skip
