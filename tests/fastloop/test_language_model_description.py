"""`fastloop info model=`: what a diffusion language model is, and whether it keeps its word."""

import json

import pytest

from fastloop import cli
from fastloop.policies.dlm import decoder

STOCK = {"sdar": "Qwen3", "Dream": "Qwen2"}


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A function: a model_type -> the folder of a random model of debug size, as published."""
    transformers = pytest.importorskip(
        "transformers", reason="they are of transformers (extra vla)"
    )

    def write(kind):
        config = getattr(transformers, f"{STOCK[kind]}Config")(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
            bos_token_id=None, eos_token_id=61, pad_token_id=None,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(kind)
        getattr(transformers, f"{STOCK[kind]}ForCausalLM")(config).save_pretrained(folder)
        described = json.loads((folder / "config.json").read_text())
        described |= {"model_type": kind, "mask_token_id": 63}
        described |= {"block_size": 4} if kind == "sdar" else {"architectures": ["DreamModel"]}
        (folder / "config.json").write_text(json.dumps(described))
        return folder

    return write


def info(folder, path, *overrides):
    return cli.main(["info", f"model={path}", f"run_dir={folder}", *overrides])


def said(folder):
    return json.loads((folder / "result.json").read_text())["provenance"]["checkpoint"]


@pytest.mark.parametrize(("kind", "regime"), [("Dream", "full"), ("sdar", "block_causal")])
def test_it_is_described_and_checked(published, tmp_path, capsys, kind, regime):
    path = published(kind)
    assert info(tmp_path, path, "check=true") == 0
    facts = said(tmp_path)
    assert (facts["regime"], facts["ids"]["mask"], facts["checks"]) == (regime, 63, {})
    told = capsys.readouterr().out
    assert "FAILED" not in told
    assert told.count("\nok ") > 8


def test_a_model_that_breaks_its_word_is_named(published, tmp_path, capsys, monkeypatch):
    path = published("sdar")
    forward = decoder.Decoder.forward

    def forgetful(self, ids, *, positions, mask, kv):
        return forward(self, ids, positions=positions * 0, mask=mask, kv=kv)

    monkeypatch.setattr(decoder.Decoder, "forward", forgetful)
    assert info(tmp_path, path, "check=true") == 1
    assert "FAILED  positions are those that are given" in capsys.readouterr().out
    assert "positions are those that are given" in said(tmp_path)["checks"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["keys=true"], "goes with check= alone"), (["ckpt=dp_pusht"], "goes with check= alone")],
)
def test_what_is_of_policies_is_refused(published, tmp_path, capsys, overrides, message):
    assert info(tmp_path, published("sdar"), *overrides) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_other_folders_are_refused(tmp_path, capsys):
    assert info(tmp_path / "run", tmp_path) == 2
    assert "expected a folder with a config.json of model_type Dream" in " ".join(
        capsys.readouterr().err.split()
    )


def test_policies_are_not_checked(tmp_path, capsys):
    assert cli.main(["info", "ckpt=dp_pusht", "check=true", f"run_dir={tmp_path}"]) == 2
    assert "say model=FOLDER" in " ".join(capsys.readouterr().err.split())
