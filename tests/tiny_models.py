"""Real text-to-music models, small enough to build and run in a moment, for the tests of drivers and recipes.

All have 8 kHz, random weights that are the same in every process, and a text of at most twelve words.
"""

from __future__ import annotations

from typing import Any

WORDS = ("piano", "drums", "calm", "fast", "a", "b", "c", "d", "e", "f", "g", "h")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
IDS = {token: index for index, token in enumerate([*SPECIAL.values(), *WORDS])}


def word_tokenizer(max_length: int = 12) -> Any:
    """A fixed word-level vocabulary: trained tokenizers differ between two runs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", IDS["[EOS]"])])
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=max_length, **SPECIAL)


def wake(*modules: Any, gain: float = 2.0) -> None:
    """Some projections start at zero: without this nothing hears the prompt, and a test of it proves nothing."""
    import torch

    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)


def t5_encoder(width: int = 16) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=len(IDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def oobleck(ratios: list[int]) -> Any:
    from diffusers import AutoencoderOobleck

    codec = AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=ratios, channel_multiples=[1, 2, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=2, sampling_rate=8_000,
    )  # fmt: skip
    codec.decoder.conv2.weight_g.data.mul_(0.03)  # below full scale, where clamping would hide differences
    return codec


def build_tiny_musicgen(*, stereo: bool = False, melody: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of real classes with random weights: 8 kHz, 50 frames/s, 4 codebooks of 32 a channel."""
    import torch
    import transformers
    from transformers import EncodecConfig, T5Config

    tokenizer = word_tokenizer()
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


def stable_audio_3(
    *, stochastic_sampling: bool = False, compact: bool = False, patch_size: int = 2, gain: float = 2.0
) -> Any:
    """Mono, latents of 128 samples, up to 4 s; `compact`: with the clock and the sampler of compact-flow."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableAudio3DiTModel, StableAudio3Pipeline
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
    from transformers import T5GemmaConfig, T5GemmaEncoderModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    from alignment import SpectralCodec
    from alignment.clocked_denoiser import HARMONICS, ClockedStableAudio3DiT
    from alignment.schedulers import FlowMatchMultistepScheduler

    width = 16
    module = T5GemmaModuleConfig(
        vocab_size=len(IDS), hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=12, sliding_window=12, attention_dropout=0.0,
        dropout_rate=0.1, query_pre_attn_scalar=8, pad_token_id=0, eos_token_id=2, bos_token_id=2,
    ).to_dict()  # fmt: skip
    text_encoder = T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False))
    shape = {
        "patch_size": patch_size, "embed_dim": 32, "depth": 1, "num_heads": 2, "cond_token_dim": width,
        "global_cond_dim": width, "local_add_cond_dim": 1, "timestep_features_dim": 16, "ff_mult": 2.0,
        "num_memory_tokens": 2, "use_differential_attention": False,
    }  # fmt: skip
    denoiser = (
        ClockedStableAudio3DiT(io_channels=4 + 2 * len(HARMONICS), clock_tempi=(60.0, 140.0), latent_rate=62.5, **shape)
        if compact
        else StableAudio3DiTModel(io_channels=4, **shape)
    )
    codec = SpectralCodec(
        sampling_rate=8_000, latent_dim=4, width=16, expansion=2.0, encoder_depths=(1, 1), decoder_depths=(1, 1),
        n_fft=256, hop_length=64, stride=2,
    )  # fmt: skip
    durations = StableAudio3DurationEmbedder(output_dim=width, fourier_dim=16, max_val=4.0)
    wake(denoiser, text_encoder, gain=gain)
    scheduler = FlowMatchMultistepScheduler if compact else FlowMatchEulerDiscreteScheduler
    return StableAudio3Pipeline(
        vae=codec, text_encoder=text_encoder, tokenizer=word_tokenizer(), duration_embedder=durations,
        transformer=denoiser,
        scheduler=scheduler(num_train_timesteps=1, stochastic_sampling=stochastic_sampling),
    )  # fmt: skip


def stable_audio() -> Any:
    """Stereo, latents of 128 samples, up to 0.512 s, always 32 latents."""
    from diffusers import CosineDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    denoiser = StableAudioDiTModel(
        sample_size=32, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_key_value_attention_heads=1, out_channels=4, cross_attention_dim=16, time_proj_dim=16,
        global_states_input_dim=16, cross_attention_input_dim=8,
    )  # fmt: skip
    text_encoder = t5_encoder()
    wake(denoiser, text_encoder, gain=1.2)
    projection = StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=8, min_value=0, max_value=8)
    return StableAudioPipeline(
        vae=oobleck([4, 4, 8]), text_encoder=text_encoder, projection_model=projection, tokenizer=word_tokenizer(),
        transformer=denoiser, scheduler=CosineDPMSolverMultistepScheduler(solver_order=2),
    )  # fmt: skip


def ace_step(*, is_turbo: bool = False) -> Any:
    """Stereo, latents of 512 samples."""
    import torch
    from diffusers import AceStepPipeline, AceStepTransformer1DModel, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    width = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    denoiser = AceStepTransformer1DModel(
        **width, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=8, is_turbo=is_turbo
    )
    conditions = AceStepConditionEncoder(
        **width, text_hidden_dim=16, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, sliding_window=8,
    )  # fmt: skip
    conditions.silence_latent.normal_()
    text_encoder = Qwen3Model(Qwen3Config(vocab_size=len(IDS), num_hidden_layers=1, **width))
    wake(denoiser, conditions, text_encoder)
    torch.nn.init.normal_(conditions.null_condition_emb)
    return AceStepPipeline(
        vae=oobleck([8, 8, 8]), text_encoder=text_encoder, tokenizer=word_tokenizer(256), transformer=denoiser,
        condition_encoder=conditions, scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip


def longcat() -> Any:
    """Mono, latents of 128 samples, up to 30 s."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        LongCatAudioDiTPipeline,
        LongCatAudioDiTTransformer,
        LongCatAudioDiTVae,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    denoiser = LongCatAudioDiTTransformer(dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=16, latent_dim=4)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(IDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    wake(denoiser, text_encoder, gain=0.7)
    codec = LongCatAudioDiTVae(
        channels=4, c_mults=[1, 2, 4], strides=[2, 8, 8], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=128,
        sample_rate=8_000,
    )  # fmt: skip
    codec.decoder.layers[-2].weight_g.data.mul_(0.1)
    return LongCatAudioDiTPipeline(
        vae=codec, text_encoder=text_encoder, tokenizer=word_tokenizer(), transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )  # fmt: skip


def audioldm2(*, scheduler_class: str = "DDIMScheduler") -> Any:
    """Mono, spectrogram frames of 64 samples, two to a latent frame."""
    import diffusers
    from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        RobertaTokenizer,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        T5Tokenizer,
    )

    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    clap = ClapConfig(
        text_config=dict(
            vocab_size=len(letters), hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
            projection_dim=8, max_position_embeddings=32, pad_token_id=1,
        ),
        audio_config=dict(
            spec_size=8, window_size=4, num_mel_bins=8, depths=[1, 1], num_attention_heads=[1, 1], num_hidden_layers=2,
            hidden_size=192, projection_dim=8, patch_size=2, patch_stride=2, patch_embed_input_channels=4,
        ),
        projection_dim=8,
    )  # fmt: skip
    widths = ([None, 16, 16], [None, 16, 16])  # of self-attention, the language model and T5
    denoiser = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, attention_head_dim=(2, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=widths,
    )  # fmt: skip
    text_encoder_2 = t5_encoder()
    language_model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=64, max_new_tokens=4))
    language_model.config.max_new_tokens = 4
    wake(text_encoder_2, language_model)
    wake(denoiser, gain=1.0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *(("▁" + word, -1.0) for word in WORDS)]
    config = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=8_000, upsample_initial_channel=16, upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )  # fmt: skip
    vocoder = SpeechT5HifiGan(config)
    wake(vocoder, gain=0.7)
    clipping = {"clip_sample": False} if scheduler_class == "DDIMScheduler" else {}
    return AudioLDM2Pipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16), in_channels=1, out_channels=1, norm_num_groups=8, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=ClapModel(clap), text_encoder_2=text_encoder_2, language_model=language_model,
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=8, text_encoder_1_dim=16, langauge_model_dim=16),
        tokenizer=RobertaTokenizer({token: i for i, token in enumerate(letters)}, [], model_max_length=24),
        tokenizer_2=T5Tokenizer(pieces, extra_ids=0, model_max_length=12),
        feature_extractor=ClapFeatureExtractor(feature_size=8), unet=denoiser, vocoder=vocoder,
        scheduler=getattr(diffusers, scheduler_class)(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", steps_offset=1, **clipping
        ),
    )  # fmt: skip


PIPELINES = {
    "stable-audio-3": stable_audio_3,
    "stable-audio": stable_audio,
    "ace-step": ace_step,
    "longcat": longcat,
    "audioldm2": audioldm2,
}


def build_tiny_pipeline(family: str = "stable-audio-3", **settings: Any) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = PIPELINES[family](**settings)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline
