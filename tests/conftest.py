"""Real text-to-music models, small enough to build and run in a moment, for the tests of drivers and recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ("piano", "drums", "calm", "fast", "a", "b", "c", "d", "e", "f", "g", "h")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "audiocraft: builds an environment of its own; runs only with -m audiocraft")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "audiocraft" not in config.getoption("markexpr"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("audiocraft")])
        items[:] = [item for item in items if not item.get_closest_marker("audiocraft")]


def build_tokenizer() -> Any:
    """A fixed word-level vocabulary: trained tokenizers differ between two runs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    ids = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", ids["[EOS]"])])
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=12, **special)


def build_tiny_musicgen(*, stereo: bool = False, melody: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of real classes with random weights: 8 kHz, 50 frames/s, 4 codebooks of 32 a channel."""
    import torch
    import transformers
    from transformers import EncodecConfig, T5Config

    tokenizer = build_tokenizer()
    text = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    codec = EncodecConfig(
        sampling_rate=8_000, upsampling_ratios=[8, 5, 4], codebook_size=32, target_bandwidths=[1.0], hidden_size=8,
        num_filters=2, num_lstm_layers=1, use_causal_conv=False, normalize=False,
    )  # fmt: skip
    kind = "MusicgenMelody" if melody else "Musicgen"
    decoder = getattr(transformers, f"{kind}DecoderConfig")(
        vocab_size=32, hidden_size=24, num_hidden_layers=2, ffn_dim=48, num_attention_heads=2,
        max_position_embeddings=256, num_codebooks=8 if stereo else 4, audio_channels=2 if stereo else 1,
        pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    extra = {"chroma_length": 7} if melody else {}
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder.to_dict()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**parts, **extra)
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        # without this logits are almost equal, and nothing hears the prompt
        for parameter in [*model.decoder.parameters(), *model.text_encoder.parameters()]:
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        # empty as built: every sequence of codes would sound the same
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
        setattr(model.generation_config, name, 32)
    return model.eval(), tokenizer


def build_tiny_pipeline(*, stochastic_sampling: bool = False, patch_size: int = 2) -> Any:
    """StableAudio3Pipeline of real classes with random weights: 8 kHz mono, latents of 128 samples, up to 4 s."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, StableAudio3DiTModel, StableAudio3Pipeline
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
    from transformers import T5GemmaConfig, T5GemmaEncoderModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    from alignment import SpectralCodec

    tokenizer = build_tokenizer()
    width = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = T5GemmaModuleConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=12, sliding_window=12,
            attention_dropout=0.0, dropout_rate=0.1, query_pre_attn_scalar=8, pad_token_id=0, eos_token_id=2,
            bos_token_id=2,
        ).to_dict()  # fmt: skip
        text_encoder = T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False))
        denoiser = StableAudio3DiTModel(
            io_channels=4, patch_size=patch_size, embed_dim=32, depth=1, num_heads=2, cond_token_dim=width,
            global_cond_dim=width, local_add_cond_dim=1, timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=2,
            use_differential_attention=False,
        )  # fmt: skip
        codec = SpectralCodec(
            sampling_rate=8_000, latent_dim=4, width=16, expansion=2.0, encoder_depths=(1, 1), decoder_depths=(1, 1),
            n_fft=256, hop_length=64, stride=2,
        )  # fmt: skip
        durations = StableAudio3DurationEmbedder(output_dim=width, fourier_dim=16, max_val=4.0)
        # some projections start at zero: without this nothing hears the prompt, and a test of it proves nothing
        for parameter in [*denoiser.parameters(), *text_encoder.parameters()]:
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=2.0 / parameter[0].numel() ** 0.5)
    return StableAudio3Pipeline(
        vae=codec, text_encoder=text_encoder, tokenizer=tokenizer, duration_embedder=durations, transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=stochastic_sampling),
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Any]:
    """make_pipeline(stochastic_sampling=..., patch_size=...) -> a fresh tiny pipeline, always the same weights."""
    return build_tiny_pipeline


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a directory, with defaults of its own and a model card."""
    directory = tmp_path_factory.mktemp("backbone") / "tiny-flow"
    build_tiny_pipeline().save_pretrained(directory)
    defaults = {"duration": 0.5, "num_inference_steps": 2, "guidance_scale": 2.0}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    (directory / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- music\n---\n# Tiny\n")
    return directory


@pytest.fixture(scope="session")
def make_musicgen() -> Callable[..., tuple[Any, Any]]:
    """make_musicgen(stereo=..., melody=...) -> a fresh tiny model and its tokenizer, always the same weights."""
    return build_tiny_musicgen


@pytest.fixture(scope="session")
def musicgen_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny MusicGen as transformers saves it, with defaults of its own and a model card."""
    directory = tmp_path_factory.mktemp("backbone") / "tiny-musicgen"
    model, tokenizer = build_tiny_musicgen()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    file = directory / "generation_config.json"
    own = {"duration": 0.5, "guidance_scale": 2.0, "temperature": 1.1, "top_k": 20, "do_sample": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    (directory / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Tiny\n")
    return directory
