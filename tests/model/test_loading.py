"""Loading checkpoints: the released layout, half precision, and everything that can be wrong with the files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from audiocraft_api.config import Config, load_config
from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.load_progress import LoadProgress
from audiocraft_api.model import hub, loading
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
from audiocraft_api.model.model_cache import ModelCache


def setup(directory: Path, **settings: Any) -> tuple[Catalog, Config]:
    config = load_config({}, **{"checkpoints_dir": directory, "offline": True, "device": "cpu", **settings})
    return Catalog(config), config


def load(directory: Path, name: str = "demo", **settings: Any) -> Any:
    catalog, config = setup(directory, **settings)
    return load_model(catalog.get(name), catalog, config)


@pytest.fixture
def checkpoint(demo_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the demo checkpoint that a test may damage."""
    shutil.copytree(demo_checkpoints / "demo", tmp_path / "demo")
    return tmp_path / "demo"


def resave(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = checkpoint / "state_dict.bin"
    package = torch.load(path, weights_only=True)
    torch.save(change(package) or package, path)


def refusal(checkpoint: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load(checkpoint.parent)
    assert caught.value.status == 503
    return caught.value.message


def test_weights_are_those_of_the_file_and_audiocraft_computes_in_float32_on_the_cpu(checkpoint: Path) -> None:
    model = load(checkpoint.parent)
    state = torch.load(checkpoint / "state_dict.bin", weights_only=True)["best_state"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert model.lm.emb[0].weight.dtype == torch.float16
    num_bytes = model.weight_bytes
    for dtype in (torch.float16, torch.float32):
        own = model.lm.state_dict()
        assert own.keys() == state.keys()
        for name, tensor in own.items():
            assert tensor.dtype == (torch.float32 if name.startswith("condition_provider") else dtype)
            assert torch.equal(tensor, state[name].to(tensor.dtype))
        model.to_float32()
    assert model.weight_bytes > num_bytes
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.lm.parameters())
    assert not model.lm.training


def test_loading_equals_audiocrafts_own_loading(demo_checkpoints: Path, tmp_path: Path) -> None:
    """audiocraft's `get_pretrained` accepts only names from its own list, which contains the text encoder's directory
    here."""
    from audiocraft.models import MusicGen
    from audiocraft.modules.conditioners import T5Conditioner
    from omegaconf import OmegaConf

    model = load(demo_checkpoints)
    text_encoder = next(name for name in T5Conditioner.MODELS if str(demo_checkpoints / "demo") in name)
    codec = next((demo_checkpoints / "demo/hub").glob("models--*codec/snapshots/*"))
    package = torch.load(demo_checkpoints / "demo/state_dict.bin", weights_only=True)
    config = OmegaConf.create(package["xp.cfg"])
    config.conditioners.description.t5.name = text_encoder
    torch.save({**package, "xp.cfg": OmegaConf.to_yaml(config)}, tmp_path / "state_dict.bin")

    from audiocraft.models import loaders
    from audiocraft.models.encodec import HFEncodecCompressionModel, HFEncodecModel

    lm = loaders.load_lm_model(str(tmp_path), device="cpu")
    reference = MusicGen("reference", HFEncodecCompressionModel(HFEncodecModel.from_pretrained(codec)), lm)
    reference.set_generation_params(duration=0.5)
    torch.manual_seed(5)
    waveform, codes = reference.generate(["slow piano"], return_tokens=True)

    from audiocraft_api.core.params import GenerationParams

    mine = model.generate_codes(GenerationParams("demo", "slow piano", 0.5, seed=5), lambda _done, _total: None)
    assert torch.equal(mine, codes)
    assert torch.equal(model.decode_codes(mine), waveform[0])


def test_the_revision_of_local_files_follows_their_content(checkpoint: Path, demo_checkpoints: Path) -> None:
    first = load(demo_checkpoints).revision
    assert len(first) == 40
    os.utime(checkpoint / "state_dict.bin", (1, 1))
    assert load(checkpoint.parent).revision == first

    resave(checkpoint, with_another_weight)
    assert load(checkpoint.parent).revision != first


def with_another_weight(package: dict[str, Any]) -> None:
    package["best_state"]["emb.0.weight"][0, 0] += 1


def pinned(checkpoint: Path, **sums: str) -> Path:
    path = checkpoint.parent / "models.json"
    path.write_text(json.dumps({"demo": sums}))
    return path


def sha256sum(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


FILES = {"sha256": "state_dict.bin", "codec_sha256": "compression_state_dict.bin"}


def test_files_with_the_pinned_checksums_are_loaded_and_hashed_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models_file = pinned(checkpoint, **{field: sha256sum(checkpoint / name) for field, name in FILES.items()})
    file_digest = Mock(wraps=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    for _ in range(2):
        assert load(checkpoint.parent, models_file=models_file)
    assert file_digest.call_count == len(FILES)


@pytest.mark.parametrize("field", FILES)
def test_a_file_without_the_pinned_checksum_is_refused(checkpoint: Path, field: str) -> None:
    name = FILES[field]
    pins = {field: sha256sum(checkpoint / name) for field, name in FILES.items()}
    with pytest.raises(ModelUnavailable, match=f"{name} has the SHA-256 {pins[field]}, .* pins {'0' * 64}"):
        load(checkpoint.parent, models_file=pinned(checkpoint, **pins | {field: "0" * 64}))
    assert load(checkpoint.parent, models_file=pinned(checkpoint, **pins))
    resave(checkpoint, with_another_weight)
    with pytest.raises(ModelUnavailable, match=r"state_dict.bin has the SHA-256"):
        load(checkpoint.parent, models_file=pinned(checkpoint, **pins))


def test_the_revision_is_known_before_anything_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    catalog, config = setup(checkpoint.parent)
    cache = ModelCache(catalog, config)
    before = cache.known_revision("demo")
    assert before == load(checkpoint.parent).revision
    resave(checkpoint, with_another_weight)
    assert cache.known_revision("demo") not in (None, before)
    (checkpoint / "state_dict.bin").write_bytes(b"damaged")
    assert cache.known_revision("demo") is None
    assert ModelCache(*setup(tmp_path / "none")).known_revision("demo") is None, "known_revision builds nothing"
    assert not (tmp_path / "none").exists()


def test_known_revision_does_not_import_torch(demo_checkpoints: Path) -> None:
    program = (
        "import sys; from audiocraft_api.config import Config; from audiocraft_api.model.catalog import Catalog\n"
        "from audiocraft_api.model.model_cache import ModelCache\n"
        f"config = Config(checkpoints_dir={str(demo_checkpoints)!r}, offline=True)\n"
        "cache = ModelCache(Catalog(config), config)\n"
        "print(cache.known_revision('demo'), cache.known_revision('small'), 'torch' in sys.modules)"
    )
    environ = os.environ | {"HF_HOME": str(demo_checkpoints / "none")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    assert run.stdout.split() == [load(demo_checkpoints).revision, "None", "False"]


def test_a_checkpoint_in_the_hubs_cache_loads_offline_with_its_commit(
    demo_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released layout: a snapshot of two files that name text encoder and codec, which are in the cache, too."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache"
    shutil.copytree(demo_checkpoints / "demo" / "hub", cache)
    repository = cache / "models--facebook--musicgen-small"
    (repository / "snapshots" / commit).mkdir(parents=True)
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        shutil.copy(demo_checkpoints / "demo" / name, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(socket, "create_connection", None)  # no network
    for offline in (True, False):
        model = load(tmp_path / "none", "small", offline=offline)
        assert model.revision == commit
        assert ModelCache(*setup(tmp_path / "none", offline=offline)).known_revision("small") == commit


def test_a_checkpoint_that_is_not_in_the_cache_is_refused_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="hf download facebook/musicgen-small"):
        load(tmp_path, "small")


def test_without_a_network_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="the model hub cannot be reached"):
        load(tmp_path, "small", offline=False)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the user's hub cache empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


def replace_download(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    """Call `download` in place of huggingface_hub's download; lookups in the cache stay as they are."""
    from huggingface_hub import snapshot_download

    def snapshot(*args: Any, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return snapshot_download(*args, local_files_only=True, **options)
        return download(**options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)


def _error(kind: str) -> BaseException:
    import errno

    import httpx
    from huggingface_hub import errors

    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    return {
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "unknown": errors.RepositoryNotFoundError("no", response=response),
        "gated": errors.GatedRepoError("no", response=response),
        "revision": errors.RevisionNotFoundError("no", response=response),
        "broken": httpx.ReadError("gone"),
    }[kind]


@pytest.mark.usefixtures("empty_cache")
def test_a_download_reports_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*, tqdm_class: Any, **_options: Any) -> str:
        with tqdm_class(total=40, unit="B") as bar:
            bar.update(10)
            bar.refresh()
        return str(tmp_path)

    replace_download(monkeypatch, download)
    reports: list[LoadProgress] = []
    with pytest.raises(ModelUnavailable):  # nothing was downloaded
        hub.Hub(report=reports.append).snapshot("org/model", hub.CODEC)
    assert reports[0] == LoadProgress("downloading", "org/model")
    assert LoadProgress("downloading", "org/model", 10, 40) in reports


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("full", "disk is full"),
        ("unknown", "no such repository"),
        ("gated", "license must be accepted"),
        ("revision", "no revision 'abc'"),
        ("broken", "cannot be reached"),
    ],
)
def test_a_download_that_fails_says_what_to_do(
    kind: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_options: Any) -> str:
        raise _error(kind)

    replace_download(monkeypatch, fail)
    with pytest.raises(ModelUnavailable, match=expected):
        hub.Hub(tmp_path).snapshot("someone/model", hub.CHECKPOINT, "abc")


@pytest.mark.usefixtures("empty_cache")
def test_a_repository_without_the_needed_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_download(monkeypatch, lambda **_options: str(tmp_path))
    with pytest.raises(ModelUnavailable, match="not those of a MusicGen model"):
        hub.Hub().snapshot("someone/model", hub.CODEC)


def test_an_invalid_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="neither a directory"):
        hub.Hub(tmp_path, offline=True).snapshot("/nowhere/at/all", hub.CHECKPOINT)


@pytest.mark.usefixtures("empty_cache")
def test_a_download_shows_its_progress_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*, tqdm_class: Any, **_options: Any) -> str:
        with tqdm_class(total=2e6, unit="B", name="download") as bar:
            bar.update(1_000_000)
            bar.refresh()
            bar.clear()
        for group in hub.CODEC.groups:
            (tmp_path / group[0]).touch()
        return str(tmp_path)

    replace_download(monkeypatch, download)
    caplog.set_level("INFO")
    assert hub.Hub().snapshot("someone/model", hub.CODEC) == tmp_path
    assert "of 2 MB." in caplog.text


def test_a_loaded_model_does_not_change_with_its_file(checkpoint: Path) -> None:
    path = checkpoint / "state_dict.bin"
    content = path.read_bytes()
    model = load(checkpoint.parent)
    before = model.lm.emb[0].weight.clone()
    path.write_bytes(bytes(len(content)))  # in place: a mapped file would change the model
    path.write_bytes(b"")
    assert torch.equal(model.lm.emb[0].weight, before)
    path.write_bytes(content[: len(content) // 2])
    assert "state_dict.bin is damaged" in refusal(checkpoint)


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "state_dict.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "state_dict.bin is damaged" in refusal(checkpoint)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all" * 100])
def test_a_file_that_is_not_a_checkpoint_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "state_dict.bin").write_bytes(content)
    assert "state_dict.bin is damaged" in refusal(checkpoint)


def test_a_flipped_bit_is_detected(checkpoint: Path) -> None:
    path = checkpoint / "state_dict.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert "Bad CRC-32" in refusal(checkpoint)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"xp.cfg": "", "best_state": _Bomb()}, checkpoint / "state_dict.bin")
    assert "more than weights" in refusal(checkpoint)
    (checkpoint / "state_dict.bin").write_bytes(pickle.dumps(_Bomb()))
    assert "damaged" in refusal(checkpoint)
    assert not (tmp_path / "exploded").exists()


def _without_a_weight(package: dict[str, Any]) -> None:
    del package["best_state"]["emb.1.weight"]


def _with_another_shape(package: dict[str, Any]) -> None:
    package["best_state"]["emb.1.weight"] = torch.zeros(3, 3)


def _of_another_kind(package: dict[str, Any]) -> None:
    package["xp.cfg"] = package["xp.cfg"].replace("transformer_lm\n", "transformer_lm_magnet\n", 1)


def _with_a_broken_configuration(package: dict[str, Any]) -> None:
    package["xp.cfg"] = "lm_model: transformer_lm\n"


def _not_a_package(_package: dict[str, Any]) -> Any:
    return [torch.zeros(1)]


def _a_bare_state(package: dict[str, Any]) -> Any:
    return package["best_state"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_without_a_weight, "does not contain this model's weights"),
        (_with_another_shape, "does not contain this model's weights"),
        (_of_another_kind, "'transformer_lm_magnet'"),
        (_with_a_broken_configuration, "damaged or is not a MusicGen model"),
        (_not_a_package, "not a checkpoint exported by audiocraft"),
        (_a_bare_state, "not a language model exported by audiocraft"),
    ],
)
def test_a_checkpoint_that_is_not_this_model_is_refused(
    checkpoint: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    resave(checkpoint, change)
    assert expected in refusal(checkpoint)


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "compression_state_dict.bin").unlink()
    assert "contains no compression_state_dict.bin" in refusal(checkpoint)


def test_a_file_that_is_not_a_codec_is_refused(checkpoint: Path) -> None:
    torch.save({"something": 1}, checkpoint / "compression_state_dict.bin")
    assert "not a codec" in refusal(checkpoint)


def test_a_damaged_codec_is_refused(checkpoint: Path) -> None:
    weights = next(checkpoint.glob("hub/models--*codec/snapshots/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("part", "weight"), [("codec", "decoder.layers.0.conv.bias"), ("text-encoder", "encoder.final_layer_norm.weight")]
)
def test_a_codec_or_text_encoder_with_a_missing_weight_is_refused(checkpoint: Path, part: str, weight: str) -> None:
    from safetensors.torch import load_file, save_file

    path = next(checkpoint.glob(f"hub/models--*{part}/snapshots/*/model.safetensors"))
    state = load_file(path)
    del state[weight]
    save_file(state, path, {"format": "pt"})
    assert f"is missing weights, such as {weight}" in refusal(checkpoint)


def test_a_separator_of_another_class_is_refused(demo_checkpoints: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(demo_checkpoints / "demo-melody", tmp_path / "demo-melody")
    weights = next(tmp_path.glob("demo-melody/hub/models--*separator/snapshots/*/demo.safetensors"))
    save_file(load_file(weights), weights, {"klass": "subprocess.Popen", "args": '["id"]', "kwargs": "{}"})
    with pytest.raises(ModelUnavailable, match="damaged or is not a MusicGen model"):
        load(tmp_path, "demo-melody")


def test_audiocrafts_own_codec_format_loads(checkpoint: Path) -> None:
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    config = {
        "compression_model": "encodec",
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 32_000, "channels": 1, "causal": False},
        "seanet": {
            "dimension": 16,
            "n_filters": 2,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "encoder": {},
            "decoder": {},
        },
        "rvq": {"n_q": 4, "bins": 2048, "q_dropout": False},
        "device": "cpu",
    }
    codec = builders.get_compression_model(OmegaConf.create(config))
    package = {"xp.cfg": OmegaConf.to_yaml(OmegaConf.create(config)), "best_state": codec.state_dict()}
    torch.save(package, checkpoint / "compression_state_dict.bin")
    model = load(checkpoint.parent)
    codes = torch.zeros(1, 4, 50, dtype=torch.long)
    assert torch.equal(model.decode_codes(codes), codec.eval().decode(codes)[0].detach())


def test_a_checkpoint_without_the_declared_abilities_is_refused(demo_checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text('{"mine": {"checkpoint": "%s", "melody": true}}' % (demo_checkpoints / "demo"))
    with pytest.raises(ModelUnavailable, match="declared with melody=True"):
        load(tmp_path, "mine", models_file=path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (ImportError("libfoo.so"), "missing or broken"),
    ],
)
def test_an_error_while_loading_becomes_a_message_that_says_what_to_do(
    error: Exception, expected: str, demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(loading, "choose_device", fail)
    with pytest.raises(ModelUnavailable, match=expected):
        load(demo_checkpoints)


def test_a_device_that_the_machine_does_not_have_is_refused_by_name(demo_checkpoints: Path) -> None:
    with pytest.raises(ModelUnavailable, match="mps"):
        load(demo_checkpoints, device="mps")


def test_the_device_is_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert loading.choose_device("auto").type == expected


def test_importing_audiocraft_leaves_transformers_and_the_compiler_usable(demo_checkpoints: Path) -> None:
    """Runs in a separate process, because other tests have imported more modules in this one."""
    script = """
import sys
from pathlib import Path
from audiocraft_api.config import Config
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.loading import load_model
config = Config(checkpoints_dir=Path(sys.argv[1]), offline=True, device="cpu")
catalog = Catalog(config)
load_model(catalog.get("demo"), catalog, config)
import torch
from transformers import AutoModel, BertConfig, BertModel
tiny = BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
assert isinstance(AutoModel.from_config(tiny), BertModel)
assert torch.compile(torch.linalg.cholesky, backend="eager")(4 * torch.eye(2)).tolist() == [[2, 0], [0, 2]]
"""
    command = [sys.executable, "-c", script, str(demo_checkpoints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_library_is_reported_with_what_to_do(
    demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "audiocraft_api.model.audiocraft_adapter", raising=False)
    monkeypatch.setitem(sys.modules, "audiocraft_api.model.checkpoint", None)  # makes its import fail
    with pytest.raises(ModelUnavailable, match=r"missing or broken .* Install the locked"):
        load(demo_checkpoints)
    assert "ModuleNotFoundError" in caplog.text
