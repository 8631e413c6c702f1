"""The original implementations of the encoders, with random weights and without a network.

None of them is among this project's dependencies. laion_clap and muq ask the hub for models by name: folders of those
names in the working directory answer instead. Packages that they import for training alone are stood in for by empty
modules where they are missing.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

from tunejury.encoders.mert import SHAPE, MertConfig


def stand_in_for_torchvision() -> None:
    """Empty modules under the names laion_clap imports and never calls; after transformers has looked for the real
    one.
    """
    from transformers import BartModel, BartTokenizer, BertModel, BertTokenizer, RobertaModel, RobertaTokenizer

    del BartModel, BartTokenizer, BertModel, BertTokenizer, RobertaModel, RobertaTokenizer
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        return
    names = ("Normalize", "Compose", "RandomResizedCrop", "InterpolationMode", "ToTensor", "Resize", "CenterCrop")
    modules = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.datasets", "torchvision.ops")}
    modules["torchvision.ops.misc"] = types.ModuleType("torchvision.ops.misc")
    modules["torchvision.ops.misc"].__dict__["FrozenBatchNorm2d"] = object
    modules["torchvision.transforms"] = types.ModuleType("torchvision.transforms")
    modules["torchvision.transforms"].__dict__.update(dict.fromkeys(names, object))
    modules["torchvision"].__dict__.update(
        datasets=modules["torchvision.datasets"], transforms=modules["torchvision.transforms"]
    )
    for name, module in modules.items():
        sys.modules[name] = module


def write_random_models(layers: int, width: int) -> None:
    """The folders laion_clap asks the hub for, in the working directory."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    merges = ["Ġ a", "p i", "a n", "pi an", "pian o", "p p"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<mask>"])}
    for folder in (Path("roberta-base"), Path("facebook/bart-base")):
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (Path("facebook/bart-base") / "config.json").write_text('{"model_type": "bart"}')
    roberta = RobertaConfig(
        vocab_size=len(vocabulary), num_hidden_layers=layers, hidden_size=768, num_attention_heads=12,
        intermediate_size=width, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    RobertaModel(roberta).save_pretrained("roberta-base")
    Path("bert-base-uncased").mkdir()
    Path("bert-base-uncased/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) + "\n")
    bert = BertConfig(vocab_size=5, hidden_size=12, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    BertModel(bert).save_pretrained("bert-base-uncased")


def laion_clap_model(full_size: bool) -> Any:
    """laion_clap's CLAP_Module on the CPU; the working directory gets the folders it asks for."""
    stand_in_for_torchvision()
    write_random_models(*((12, 3072) if full_size else (2, 64)))
    import laion_clap

    return laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-base" if full_size else "HTSAT-tiny", device="cpu")


def mert_model(code: Path, shape: MertConfig, **settings: Any) -> Any:
    """MERTModel of the published modelling code, in evaluation mode.

    Args:
        code: folder with modeling_MERT.py and configuration_MERT.py.
        shape: of the network.
        settings: further fields of its config.
    """
    package = types.ModuleType("mert_code")
    package.__path__ = [str(code.resolve())]
    sys.modules["mert_code"] = package
    modelling = import_module("mert_code.modeling_MERT")
    values = {field: getattr(shape, field) for field in SHAPE}
    values |= {"attention_relax": 32.0, "feature_extractor_cqt": False, "deepnorm": False, "layerdrop": 0.0}
    return modelling.MERTModel(modelling.MERTConfig(**values, **settings)).eval()


def muq_mulan_model(full_size: bool) -> Any:
    """MuQMuLan of the muq package, in evaluation mode, beside the folders `muq-mulan`, `muq-base` and `xlm-roberta` in
    the working directory, which hold the same weights and configs as they are published.

    transformers 5 gives the package no hidden states; a hook hands it the last one, which is all it reads.
    """
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer
    from transformers.modeling_outputs import BaseModelOutput

    stand_in_for_torchvision()  # transformers has looked for the real one by now
    from muq import MuQ, MuQConfig, MuQMuLan

    special = ("<s>", "<pad>", "</s>", "<unk>")
    words = [(word, 0.0) for word in special]
    words += [(f"\u2581{word}", -2.0) for word in ("a", "calm", "piano", "drums", "fast")]
    words += [("\u2581", -3.0), *((c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz,.0123456789"), ("<mask>", 0.0)]
    width, depth = (768, 12) if full_size else (32, 2)
    XLMRobertaTokenizer(vocab=words).save_pretrained("xlm-roberta")
    roberta = XLMRobertaConfig(
        vocab_size=250_002 if full_size else len(words), hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=width // 16 if not full_size else 12, intermediate_size=4 * width,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
    )  # fmt: skip
    XLMRobertaModel(roberta).save_pretrained("xlm-roberta")
    hidden = 1024 if full_size else 32
    conformer = {
        "hidden_size": hidden, "num_attention_heads": hidden // 16 if not full_size else 16,
        "intermediate_size": 4 * hidden, "hidden_act": "swish", "layer_norm_eps": 1e-5,
        "position_embeddings_type": "rotary", "rotary_embedding_base": 10_000, "max_source_positions": 5000,
        "conv_depthwise_kernel_size": 31, "hidden_dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.1,
        "layerdrop": 0.0, "conformer_conv_dropout": 0.1, "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16, "feat_extract_activation": "gelu", "_attn_implementation": "eager",
    }  # fmt: skip
    base = {
        "label_rate": 25, "conv_dim": 512 if full_size else 16, "encoder_dim": hidden,
        "encoder_depth": 12 if full_size else 3, "codebook_size": 4096 if full_size else 64,
        "stat": {"melspec_2048_mean": 6.768444971712967, "melspec_2048_std": 18.417922652295623},
        "w2v2_config": conformer,
    }  # fmt: skip
    Path("muq-base").mkdir()
    Path("muq-base/config.json").write_text(json.dumps(base))
    save_file({k: v.clone() for k, v in MuQ(MuQConfig(**base)).state_dict().items()}, "muq-base/model.safetensors")
    tower = {"dim": 768, "tf_depth": 8, "heads": 8, "dim_head": 64} if full_size else {"dim": 32, "tf_depth": 2}
    tower |= {"ff_mult": 4, "attn_dropout": 0.0, "ff_dropout": 0.0}
    mulan = {
        "mulan": {"sr": 24_000, "clip_secs": 10, "dim_latent": 512 if full_size else 24, "rank_contrast": True},
        "audio_model": {"name": "muq-base", "model_dim": hidden, "use_layer_idx": -1},
        "text_model": {"name": "xlm-roberta", "model_dim": None, "use_layer_idx": -1},
        "audio_transformer": tower,
        "text_transformer": {**tower, "max_seq_len": 1024},
    }
    model = MuQMuLan(mulan).eval()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        # as freshly built, normalisations would be the identity
        if name.endswith(("running_var", "_scale", "gamma")):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.data.normal_(0.0, 0.2)
    model.mulan.audio.model.model.conformer.register_forward_hook(
        lambda module, given, out: BaseModelOutput(out.last_hidden_state, hidden_states=(out.last_hidden_state,))
    )
    Path("muq-mulan").mkdir()
    Path("muq-mulan/config.json").write_text(json.dumps(mulan))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, "muq-mulan/model.safetensors")
    return model
