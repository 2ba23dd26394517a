"""A loaded model as the engines see it: audiocraft's own modules, and what audiocraft computes around them.

Keeps no state of a request: audiocraft's generation parameters belong to a wrapper object that each call creates.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from audiocraft_api.model import xformers_stub

xformers_stub.install()  # before the first import of audiocraft

# ruff: noqa: E402
import torch
from audiocraft.data.audio_utils import convert_audio
from audiocraft.models.encodec import CompressionModel
from audiocraft.models.genmodel import BaseGenModel
from audiocraft.models.lm import LMModel
from audiocraft.models.musicgen import MusicGen
from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout, ConditioningAttributes, WavCondition
from audiocraft.utils.autocast import TorchAutocast
from torch import Tensor

from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.core.melody_line import MelodyLine
from audiocraft_api.core.texts import Texts, TextSchedule
from audiocraft_api.core.window import Window
from audiocraft_api.model.catalog import ModelSpec
from audiocraft_api.model.checkpoint import DECODER_PARTS
from audiocraft_api.model.guided_loop import generate_window
from audiocraft_api.model.line_chroma import line_chroma
from audiocraft_api.model.performance_loop import generate_performance

if TYPE_CHECKING:
    from audiocraft_api.core.params import AudioInput, GenerationParams, Melody

ConditionTensors = dict[str, tuple[Tensor, Tensor]]  # name → condition [1, S, D], mask [1, S]

# Added to durations, which audiocraft truncates to whole frames: 4.1 * 50 is 204.99…. Far less than one frame.
_EPSILON_SECONDS = 1e-6


class _Wrapper(MusicGen):
    """audiocraft's wrapper of any model. `AudioGen` generates text-to-audio in the same way as `MusicGen` does."""

    def __init__(self, name: str, codec: CompressionModel, lm: LMModel, max_duration: float) -> None:
        # MusicGen's own sets a stride of 18 s, which it refuses for shorter windows.
        BaseGenModel.__init__(self, name, codec, lm, max_duration)


class LoadedModel:
    """A language model, its conditioners and its codec, on one device, in eval mode and without gradients."""

    def __init__(self, spec: ModelSpec, revision: str, lm: LMModel, codec: CompressionModel) -> None:
        self.spec = spec
        self.revision = revision
        self.lm = lm
        self._inner_codec = codec
        self._lock = threading.Lock()
        self.device: torch.device = next(lm.parameters()).device
        self._codec_device: torch.device = next(codec.parameters()).device
        wrapper = self._wrapper()
        self.codec: CompressionModel = wrapper.compression_model  # around it for stereo
        self.sample_rate: int = wrapper.sample_rate
        self.frame_rate: float = wrapper.frame_rate
        self.channels: int = wrapper.audio_channels
        self.num_codebooks: int = lm.num_codebooks
        self.codebook_size: int = lm.card
        self.special_token_id: int = lm.special_token_id
        self.max_window_frames = int(wrapper.max_duration * self.frame_rate)
        self.has_melody = "self_wav" in lm.condition_provider.conditioners
        self.has_prefix = bool(lm.fuser.fuse2cond["prepend"])
        self._released_bytes = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, including a copy that replaced the decoder's."""
        return self._released_bytes + sum(tensor.nbytes for tensor in self._tensors() if not tensor.is_meta)

    @functools.cached_property
    def codec_digest(self) -> str:
        """A digest of the codec's weights and of its arrangement of channels and codebooks.

        Released models of several sizes have equal codecs. Reading the weights of theirs takes a quarter of a second.
        """
        digest = hashlib.blake2b(f"{self.channels} {self.num_codebooks} {self.frame_rate:g}".encode(), digest_size=16)
        for name, tensor in sorted(self._inner_codec.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def has_released_decoder_weights(self) -> bool:
        """Whether the decoder's weights were freed. The model can then only compute conditions and run its codec."""
        return bool(self._released_bytes)

    def to_float32(self) -> None:
        """Convert the decoder's weights to what audiocraft computes in; model runners use them as they are stored."""
        if self.device.type == "cpu":
            for part in self._decoder():
                part.float()

    def release_decoder_weights(self, num_bytes: int) -> None:
        """Free the decoder's weights, of which a model runner has its own copy of `num_bytes`."""
        for part in self._decoder():
            part.to("meta")
        self._released_bytes = num_bytes

    def num_frames(self, duration_seconds: float) -> int:
        """Return a duration in frames, rounded to the nearest."""
        return max(1, round(duration_seconds * self.frame_rate))

    def windows(self, params: GenerationParams, num_prompt_frames: int = 0) -> list[Window]:
        """Plan the windows of a request (audiocraft `musicgen.py::_generate_tokens`). Raises InvalidRequest."""
        total = self.num_frames(params.duration_seconds)
        if num_prompt_frames >= min(total, self.max_window_frames):
            raise InvalidRequest(
                "The audio to continue must be shorter than the requested duration and than the model's longest window."
            )
        if total <= self.max_window_frames:
            return [Window(0, num_prompt_frames, total)]
        stride = int(self.frame_rate * params.extend_stride_seconds)
        if not 0 < stride < self.max_window_frames:
            raise InvalidRequest("The stride of a long generation must be shorter than the model's longest window.")
        windows, start = [], 0
        while start + num_prompt_frames < total:
            windows.append(Window(start, num_prompt_frames, min(total - start, self.max_window_frames)))
            num_prompt_frames = windows[-1].num_frames - stride
            start += stride
        return windows

    def require_performance(self, params: GenerationParams) -> None:
        """Raise InvalidRequest unless the model can change its controls at any frame, with windows of this stride."""
        if self.has_prefix:
            raise InvalidRequest(f"The model {self.spec.name} reads its prompt before the music and cannot play live.")
        if not 0 < int(self.frame_rate * params.extend_stride_seconds) < self.max_window_frames:
            raise InvalidRequest("The stride of a performance must be shorter than the model's longest window.")

    @torch.no_grad()
    def condition_tensors(
        self,
        description: str,
        melody: Melody | None = None,
        window_start_seconds: float | None = None,
        negative_description: str | None = None,
    ) -> tuple[ConditionTensors, ConditionTensors]:
        """Return one request's conditional and unconditional conditions, as audiocraft's `lm.generate` does for B=1.

        "" as `description` is unconditional. `window_start_seconds` is None for a request of one window. With several
        windows it is where the window starts, and the melody is shifted to there (`musicgen.py::_generate_tokens`).

        With `negative_description`, each text is encoded in its own length, because padding would be attended. Only a
        model with text in its prefix pads the shorter one, as audiocraft does within a batch, so that both prefixes end
        together.
        """
        wrapper = self._wrapper()
        attributes = self._attributes(wrapper, description, melody)
        if window_start_seconds is not None:
            self._shift_melody(wrapper, attributes[0], window_start_seconds)
        null = ClassifierFreeGuidanceDropout(p=1.0)(attributes)
        provider = self.lm.condition_provider
        if negative_description is not None:
            null[0].text["description"] = negative_description
        with wrapper.autocast:
            if negative_description is not None and "description" not in self.lm.fuser.fuse2cond["prepend"]:
                cond, uncond = provider(provider.tokenize(attributes)), provider(provider.tokenize(null))
            else:
                both = provider(provider.tokenize(attributes + null))
                cond = {name: (condition[:1], mask[:1]) for name, (condition, mask) in both.items()}
                uncond = {name: (condition[1:], mask[1:]) for name, (condition, mask) in both.items()}
            if isinstance(melody, MelodyLine):
                cond["self_wav"] = self._line_condition(wrapper, melody, window_start_seconds)
        return cond, uncond

    @torch.no_grad()
    def encode(self, audio: AudioInput) -> Tensor:
        """Return the codes [1, K, T] of audio, converted to the model's rate and channels, on the model's device."""
        waveform = self._converted(audio)[None].to(self._codec_device)  # [1, C, T]
        codes, scale = self.codec.encode(waveform)
        assert scale is None, "MusicGen's codecs do not renormalize"
        return codes.to(self.device)

    def prompt_codes(self, audio: AudioInput) -> Tensor:
        """Return the codes [1, K, T] of audio to continue: its own codes if this codec made them, else encoded ones."""
        given = audio.codes
        if given is None or given.codec != self.codec_digest or given.tokens.max() >= self.codebook_size:
            return self.encode(audio)
        return torch.from_numpy(given.tokens.astype("int64"))[None].to(self.device)

    @torch.no_grad()
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return the waveform [C, T] float32 on the CPU of codes [1, K, T]."""
        return self.codec.decode(codes.to(self._codec_device), None)[0].float().cpu()

    @torch.no_grad()
    def generate_codes(self, params: GenerationParams, on_step: Callable[[int, int], None]) -> Tensor:
        """Generate codes [1, K, T] with audiocraft's own loop, one request at a time.

        Controls that audiocraft does not have take the loop of `guided_loop`.

        Calls `on_step(frames_done, frames_total)` after each step; an exception from it ends the generation.
        """
        with self._lock, torch.random.fork_rng(devices=self._cuda_devices()):
            prompt = None if params.audio_prompt is None else self.prompt_codes(params.audio_prompt)
            windows = self.windows(params, 0 if prompt is None else prompt.shape[-1])
            wrapper = self._wrapper()
            self.to_float32()
            self._set_generation_params(wrapper, params)
            wrapper.set_custom_progress_callback(self._progress(windows, on_step))
            torch.manual_seed(params.seed)
            if params.performance is not None:
                self.require_performance(params)
                with wrapper.autocast:
                    return generate_performance(
                        self.lm,
                        params,
                        window_frames=self.max_window_frames,
                        stride_frames=int(self.frame_rate * params.extend_stride_seconds),
                        context_of=functools.cache(lambda text: self.condition_tensors(text)[0]),
                        on_step=on_step,
                    )
            # audiocraft's loop reads conditions from texts and recordings only.
            if params.negative_description is not None or params.segments or isinstance(params.melody, MelodyLine):
                with wrapper.autocast:
                    return self._generate_guided(params, prompt, windows, on_step)
            attributes = self._attributes(wrapper, params.description, params.melody)
            return wrapper._generate_tokens(attributes, prompt, progress=True)

    def _generate_guided(
        self,
        params: GenerationParams,
        prompt: Tensor | None,
        windows: list[Window],
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Generate window by window (audiocraft `musicgen.py::_generate_tokens`)."""
        given = torch.zeros(1, self.num_codebooks, 0, dtype=torch.long, device=self.device)
        given = given if prompt is None else prompt
        parts, progress = [given], self._progress(windows, on_step)
        for index, window in enumerate(windows):
            conditions_at = self._conditions_at(params, window, is_only=len(windows) == 1)
            codes = generate_window(self.lm, params, given, window.num_frames, conditions_at, progress)
            parts.append(codes[..., given.shape[-1] :])
            if index + 1 < len(windows):
                given = codes[..., windows[index + 1].start - window.start :]
        return torch.cat(parts, dim=-1)

    def _conditions_at(
        self, params: GenerationParams, window: Window, *, is_only: bool
    ) -> Callable[[int], tuple[ConditionTensors, ConditionTensors]]:
        """Return the function from a column of the window's delay pattern to the conditions of its step.

        A step has the texts of the frame that it completes, or of the window's first new frame before one is complete.
        A prefix does not change within a window.
        """
        start_seconds = None if is_only else window.start / self.frame_rate
        schedule = TextSchedule(params, self.frame_rate)
        first_new, max_delay = window.start + window.num_prompt_frames, max(self.lm.pattern_provider.delays)

        @functools.cache
        def conditions(texts: Texts) -> tuple[ConditionTensors, ConditionTensors]:
            return self.condition_tensors(texts.description, params.melody, start_seconds, texts.negative)

        def conditions_at(column: int) -> tuple[ConditionTensors, ConditionTensors]:
            completed = first_new if self.has_prefix else window.start + column - 1 - max_delay
            return conditions(schedule.at(max(first_new, completed)))

        return conditions_at

    def _wrapper(self) -> MusicGen:
        window_seconds = min(self.spec.window_seconds, self.lm.cfg.dataset.segment_duration)
        wrapper = _Wrapper(self.spec.name, self._inner_codec, self.lm, window_seconds)
        if self.device.type == "mps":
            wrapper.autocast = TorchAutocast(enabled=False)
        return wrapper

    def _set_generation_params(self, wrapper: MusicGen, params: GenerationParams) -> None:
        num_frames = self.num_frames(params.duration_seconds)
        epsilon = 0.0 if num_frames == self.max_window_frames else _EPSILON_SECONDS
        long = num_frames > self.max_window_frames
        wrapper.set_generation_params(
            use_sampling=params.use_sampling,
            top_k=params.top_k,
            top_p=params.top_p,
            temperature=params.temperature,
            duration=num_frames / self.frame_rate + epsilon,
            cfg_coef=params.cfg_coef,
            extend_stride=params.extend_stride_seconds if long else wrapper.max_duration / 2,
        )

    def _attributes(self, wrapper: MusicGen, description: str, melody: Melody | None) -> list[ConditioningAttributes]:
        if melody is not None and not self.has_melody:
            raise InvalidRequest(f"The model {self.spec.name!r} cannot follow a melody.")
        melodies = None if melody is None or isinstance(melody, MelodyLine) else [self._converted(melody)]
        attributes, _ = wrapper._prepare_tokens_and_attributes([description], None, melodies)
        return attributes

    def _line_condition(
        self, wrapper: MusicGen, line: MelodyLine, window_start_seconds: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return the condition of notes and its mask, as `ChromaStemConditioner` returns those of a recording.

        The chroma of a request of one window is repeated; that of a longer one is written for each window.
        """
        conditioner = self.lm.condition_provider.conditioners["self_wav"]
        extractor = conditioner.chroma
        chroma = torch.from_numpy(
            line_chroma(
                line,
                sample_rate=extractor.sample_rate,
                hop=extractor.winhop,
                window=extractor.winlen,
                begin_seconds=window_start_seconds or 0.0,
                seconds=line.seconds if window_start_seconds is None else wrapper.max_duration,
            )
        )  # [T, 12]
        frames = torch.arange(conditioner.chroma_len) % len(chroma)
        weight = conditioner.output_proj.weight
        embedded = conditioner.output_proj(chroma[frames][None].to(weight))  # [1, T, D]
        return embedded, torch.ones_like(embedded[..., 0])

    def _converted(self, audio: AudioInput) -> Tensor:
        waveform = torch.tensor(audio.waveform)  # a copy: the array may be read-only
        return convert_audio(waveform, audio.sample_rate, self.sample_rate, self.channels)  # [C, T]

    def _shift_melody(self, wrapper: MusicGen, attributes: ConditioningAttributes, start_seconds: float) -> None:
        """Repeat the melody to fill a whole window that starts at `start_seconds` (musicgen.py:309-324)."""
        wav, length, *_ = attributes.wav["self_wav"]
        if not (wav_length := int(length.item())):
            return
        target = int(wrapper.max_duration * self.sample_rate)
        begin = int(start_seconds * self.sample_rate)
        positions = torch.arange(begin, begin + target, device=self.device)
        attributes.wav["self_wav"] = WavCondition(
            wav[..., positions % wav_length], torch.full_like(length, target), [self.sample_rate], [None], [0.0]
        )

    def _progress(self, windows: list[Window], on_step: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Convert audiocraft's step count, which restarts in each window, to frames of the whole generation."""
        total = windows[-1].start + windows[-1].num_frames
        frames = self._frames_after_each_step(windows)

        def callback(_step: int, _num_steps: int) -> None:
            on_step(next(frames), total)

        return callback

    def _frames_after_each_step(self, windows: list[Window]) -> Iterator[int]:
        for window in windows:
            num_new = window.num_frames - window.num_prompt_frames
            # The delay pattern needs more steps than frames; a frame is done when its last codebook is.
            num_steps = (
                len(self.lm.pattern_provider.get_pattern(window.num_frames).layout) - 1 - window.num_prompt_frames
            )
            for step in range(1, num_steps + 1):
                yield window.start + window.num_prompt_frames + max(0, step - (num_steps - num_new))

    def _decoder(self) -> Iterator[torch.nn.Module]:
        for name in DECODER_PARTS:
            part = getattr(self.lm, name)
            if part is not None:
                yield part

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _tensors(self) -> Iterator[Tensor]:
        modules: list[torch.nn.Module] = [self.lm, self._inner_codec]
        for conditioner in self.lm.condition_provider.conditioners.values():
            # audiocraft hides frozen encoders from the module tree (conditioners.py, `__dict__`).
            modules += [vars(conditioner)[name] for name in ("t5", "demucs") if name in vars(conditioner)]
        for module in modules:
            yield from module.parameters()
            yield from module.buffers()
