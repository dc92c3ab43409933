"""What every test finds: poisoned memory, skips that say why, recorders and real recordings."""

import copy
import json
import os
from pathlib import Path

import hypothesis
import pytest
import torch
from safetensors.torch import save_file

from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import FileTokenizer, build_tokenizer, token_id
from fastloop.sims.gl import EGL_INSTALL, choose_backend, egl_is_there

ROOT = Path(__file__).parents[1]
REALDATA = Path(os.environ.get("FASTLOOP_REALDATA") or ROOT.parent / "shared" / "realdata")

choose_backend()  # before a test imports PyOpenGL by way of somebody else

# The networks of tests are small: on a busy machine several threads take a hundred times as long.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start

# Tables keep a row on a line, however many digits a time has; tests of narrow ones set their own.
os.environ["COLUMNS"] = "240"

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run."""
    missing = {}
    if not egl_is_there():
        missing["gl"] = f"renders through EGL, which is missing: {EGL_INSTALL}"
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def poisoned_memory(request, monkeypatch):
    """Under tests/accel, fresh tensors hold NaN (integers: their largest), so reading one shows."""
    if ROOT / "tests" / "accel" not in request.path.parents:
        return

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.detach().fill_(torch.nan).requires_grad_(tensor.requires_grad)
            if tensor.dtype != torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).max)
            return tensor

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


class FakeRecorder:
    """Records for a `Graph` on a CPU: like a CUDA graph, a replay reads the tensors that it was
    captured on and writes those that it gave back then."""

    def __init__(self, error=None):
        self.error = error
        self.warmed = self.captured = self.replayed = 0

    def warm_up(self, call):
        self.warmed += 1
        call()

    def capture(self, call):
        self.captured += 1
        if self.error is not None:
            raise self.error
        outputs = call()

        def replay():
            self.replayed += 1
            for static, fresh in zip(outputs, call(), strict=True):
                if static is not None:
                    static.copy_(fresh)

        return replay, outputs


@pytest.fixture(scope="session")
def fake_recorder():
    """The class."""
    return FakeRecorder


class _NoPythonNumbers(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor, torch.from_numpy), function
        return function(*args, **(kwargs or {}))


class _OnMeta(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        answer = operation(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, answer)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.is_meta, f"{operation} on {tensor.device}"
        return answer


@pytest.fixture
def without_values(monkeypatch):
    """A function (object, method, *tensors) that calls the method of a copy whose tensors have no
    values, and fails on what a CUDA graph cannot record: waiting for a value, operations whose work
    depends on one, and tensors made of Python's numbers or on another device."""

    def to_meta(value):
        def on_meta(tensor, memo):
            return memo.setdefault(id(tensor), tensor.detach().to("meta"))

        with monkeypatch.context() as patched:
            for kind in (torch.Tensor, torch.nn.Parameter):
                patched.setattr(kind, "__deepcopy__", on_meta)
            return copy.deepcopy(value)

    def call(thing, method, *tensors):
        thing, tensors = to_meta((thing, tensors))
        with torch.inference_mode(), _NoPythonNumbers(), _OnMeta():
            return getattr(thing, method)(*tensors)

    return call


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real recordings."""
    if not REALDATA.is_dir():
        pytest.skip(f"no recordings at {REALDATA}: FASTLOOP_REALDATA names their folder")
    return REALDATA


@pytest.fixture(scope="session")
def random_lavida():
    """A function (folder, schema, **manifest) that writes a LaViDa of debug size which drives."""
    return _write_lavida


def _write_lavida(folder, answer, **manifest):
    """On Dream; its mask and what fills up a field go by names of its own."""
    transformers = pytest.importorskip("transformers", reason="its parts are of it (extra vla)")
    folder.mkdir()
    (folder / "answer.yaml").write_text(answer)
    template = load_template("small_dream")
    words = [template.text, template.state, *template.commands]
    text = build_tokenizer([*vocabulary(load_schema(folder / "answer.yaml")), *words])
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    ids = FileTokenizer(folder / "tokenizer.json")
    mask, null = token_id(ids, "<|video_pad|>"), token_id(ids, "<|endoftext|>")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(ids), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    network = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    )
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    tower = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**vision, vision_use_head=False)
    )
    front = "model.vision_tower.vision_tower.vision_model."
    weights = {key: 4 * value for key, value in network.state_dict().items()} | {
        front + key.removeprefix("vision_model."): 2 * value
        for key, value in tower.state_dict().items()
    }
    for index, rows in ((0, 16), (2, 32)):
        weights[f"model.mm_projector.{index}.weight"] = 0.5 * torch.randn(32, rows)
        weights[f"model.mm_projector.{index}.bias"] = torch.randn(32)
    weights["model.image_newline"] = torch.randn(32)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llava_dream", **sizes, "rope_theta": 1e4, "mask_token_id": mask,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]], "vision_config": vision,
    }))  # fmt: skip
    told = {"null_id": null, "schema": "answer.yaml", "prompt": "small_dream"}
    (folder / "fastloop.json").write_text(json.dumps({**told, **manifest}))
    return folder
