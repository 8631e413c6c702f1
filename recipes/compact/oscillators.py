"""A start for EnCodec's decoder on codes without phase: an LSTM that is a bank of oscillators with envelopes.

A convolution over frames can only repeat itself where the codes stand still, so of codes without phase it makes tones
at multiples of the frame rate alone. State must carry the phase. Here the decoder's LSTM begins with pairs of units
whose recurrent weights turn them by one frame of a semitone each, a little above unit gain, so that tanh keeps their
size; the units that follow multiply them, by their output gates, with the magnitude that the codes give at that pitch;
and the first transposed convolution turns each product into the coefficients of such a tone. The oscillators stay as
they are, all else learns.
"""

from __future__ import annotations

import math

import torch
from encodec_parts import FILTERS, HIDDEN, HOP, RATIOS, SAMPLE_RATE, set_weight
from spectral_codes import N_FFT, SpectralCodes
from torch import Tensor, nn
from transformers import EncodecModel

LOWEST, PITCHES = 29, 90  # MIDI numbers 29 to 118: 44 Hz to 7 kHz
WIDTH = FILTERS * 2 ** len(RATIOS)
SPREAD = 0.2  # how far the oscillators turn from where they begin
GAIN = 1.068  # of a turn: with SPREAD, what tanh takes from them, so that they neither fade nor grow
SATURATED = 6.0  # bias of a gate that stays open, or with a minus shut
HEARD = 0.25  # what of a log magnitude goes into the LSTM
LOUD = 4.0  # log magnitude at which an envelope is half open
DRIVE = 2.5  # of the products by the oscillators
STREWN = 0.04  # range of the other first weights


def frequencies() -> Tensor:
    """Hz, [PITCHES]."""
    return 440 * 2 ** ((torch.arange(LOWEST, LOWEST + PITCHES) - 69) / 12)


class Oscillators:
    """The decoder's LSTM with its oscillators, which `hold` puts back after a step of training."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.rows = torch.cat([gate * WIDTH + torch.arange(2 * PITCHES) for gate in range(4)])

    def parts(self) -> list[Tensor]:
        lstm = self.lstm
        return [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]

    @torch.no_grad()
    def start(self) -> None:
        for weight in self.lstm.parameters():
            nn.init.uniform_(weight, -STREWN, STREWN)
        given, turned, bias, second_bias = self.parts()
        bias.zero_()
        second_bias.zero_()
        of_input, forget, cell, output = (WIDTH * gate for gate in range(4))
        units = torch.arange(2 * PITCHES)  # cosine and sine of each pitch
        cosines, sines, products = units[::2], units[1::2], units + 2 * PITCHES
        given[self.rows], turned[self.rows] = 0, 0
        bias[of_input + units], bias[forget + units], bias[output + units] = SATURATED, -SATURATED, SATURATED
        angle = 2 * math.pi * frequencies() * HOP / SAMPLE_RATE
        gain = GAIN / torch.sigmoid(torch.tensor(SATURATED)) ** 2
        turned[cell + cosines, cosines] = turned[cell + sines, sines] = gain * angle.cos()
        turned[cell + sines, cosines] = gain * angle.sin()
        turned[cell + cosines, sines] = -gain * angle.sin()
        # they turn around (SPREAD, 0), SPREAD away from it: from zero, where an LSTM begins
        bias[cell + cosines], bias[cell + sines] = SPREAD * (1 - angle.cos()), -SPREAD * angle.sin()

        for gate in (of_input, forget, output):
            given[gate + products] *= 0.2
            turned[gate + products] *= 0.2
        given[cell + products], turned[cell + products] = 0, 0
        bias[of_input + products], bias[forget + products] = 4, -4
        turned[cell + products, units] = DRIVE
        bias[cell + products[::2]] = -DRIVE * SPREAD
        pitches = torch.arange(PITCHES)
        for own in (products[::2], products[1::2]):
            given[output + own, pitches] = 1 / HEARD
        bias[output + products] = -LOUD

    def keep(self) -> None:
        self.kept = [part[self.rows].detach().clone() for part in self.parts()]

    @torch.no_grad()
    def hold(self) -> None:
        for part, kept in zip(self.parts(), self.kept, strict=True):
            part[self.rows] = kept.to(part.device)


def magnitudes_at_pitches(codes: SpectralCodes) -> tuple[Tensor, Tensor]:
    """Log magnitude at each pitch as weights [PITCHES, HIDDEN] on latents and a bias [PITCHES]."""
    position = frequencies() * N_FFT / SAMPLE_RATE
    below = position.floor().long()
    share = position - below
    reader = torch.zeros(PITCHES, 2 * (N_FFT // 2 + 1))
    for half in (0, N_FFT // 2 + 1):  # the mean of both halves of a frame
        reader[torch.arange(PITCHES), half + below] = 0.5 * (1 - share)
        reader[torch.arange(PITCHES), half + below + 1] = 0.5 * share
    return codes.scale * reader @ codes.components.T, reader @ codes.mean


def tone_coefficients(codec: EncodecModel) -> Tensor:
    """Coefficients a [PITCHES, WIDTH], complex, of a tone of amplitude 1: Re(a exp(i phase)), phase at a frame's start.

    By the codec's encoder, which must be at its start: a transform, but for its nonlinear parts, which are left out.
    """
    time = torch.arange(16_384) / SAMPLE_RATE
    tones = torch.exp(2j * math.pi * frequencies()[:, None] * time)

    def analyse(wav: Tensor) -> Tensor:
        hidden = wav[:, None]
        for layer in codec.encoder.layers[:-1]:
            hidden = layer(hidden) if hasattr(layer, "conv") else hidden
        return hidden

    found = torch.complex(analyse(tones.real.float()), analyse(tones.imag.float()))
    frames = torch.arange(found.shape[-1])
    turned = torch.exp(-2j * math.pi * frequencies()[:, None] * frames * HOP / SAMPLE_RATE)
    return (found * turned[:, None])[..., 8:24].mean(-1)


@torch.no_grad()
def start_decoder(codec: EncodecModel, codes: SpectralCodes) -> Oscillators:
    """Let the decoder of an untrained codec begin as oscillators with envelopes."""
    layers = codec.decoder.layers
    oscillators = Oscillators(layers[1].lstm)
    oscillators.start()

    heard, bias = magnitudes_at_pitches(codes)
    taps = torch.tensor([0.3, 0.5, 1.0, 3.0, 1.0, 0.5, 0.3])
    weight = torch.randn(WIDTH, HIDDEN, len(taps)) * taps * (0.5 / math.sqrt(12 * HIDDEN))
    weight[2 * PITCHES : 4 * PITCHES] *= 1e-4  # goes past the LSTM to where the products are
    weight[:PITCHES] = 0
    weight[:PITCHES, :, len(taps) // 2] = HEARD * heard
    set_weight(layers[0].conv, weight, jitter=0.0)
    layers[0].conv.bias[:PITCHES] = HEARD * bias

    # a product is of amplitude tanh(DRIVE SPREAD) N_FFT / 4 exp(-LOUD) at a tone of amplitude 1, and a frame late
    amplitude = math.tanh(DRIVE * SPREAD) * N_FFT / 4 * math.exp(-LOUD)
    late = torch.exp(2j * math.pi * frequencies() * HOP / SAMPLE_RATE)
    tones = tone_coefficients(codec) * late[:, None] / amplitude
    size = tones.abs().square().mean().sqrt()
    patterns = size * torch.randn(WIDTH, WIDTH)
    patterns[: 2 * PITCHES] *= 1e-4  # the oscillators themselves, and what goes past the LSTM
    patterns[4 * PITCHES :] *= 2e-3
    patterns[2 * PITCHES : 4 * PITCHES : 2] = tones.real
    patterns[2 * PITCHES + 1 : 4 * PITCHES : 2] = -tones.imag
    up = layers[3].conv
    set_weight(up, torch.einsum("uk,kot->uot", patterns, up.weight.detach().clone()), jitter=0.0)
    oscillators.keep()
    return oscillators
