"""The command line: what it lists, what it refuses, and that every shipped YAML composes."""

import dataclasses
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from fastloop import cli, schemas
from fastloop.accel.samplers import SamplerConfig
from fastloop.config import SamplerOverrides
from fastloop.policies.load import WEIGHTS

CONFIGS = Path(__file__).parents[2] / "configs"
VERBS = sorted(cli.VERBS)
# What has no default, so that everything else can be tried.
NEEDED = {
    "record": ["out=demos.hdf5"],
    "train": ["dataset.path=demos.hdf5"],
    "score": ["dataset.root=drives"],
}
GROUPS = {
    "policy": "eval", "accel": "eval", "sim": "eval", "expert": "record", "dataset": "train",
    "network": "train", "deploy": "run",
}  # fmt: skip


OF_THEIR_OWN = {
    ("sim", "gymnasium"): ["eval", "sim.id=Pendulum-v1"],
    ("sim", "metadrive_log"): ["eval", "sim.scenes=drives"],
    ("policy", "ad_mlp"): ["score", "policy.checkpoint=mlp.pth"],
    ("dataset", "nuscenes"): ["score"],
    ("dataset", "nuscenes_prediction"): ["score"],
    ("dataset", "wod_e2e"): ["score"],
}


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function: the arguments of a command, to its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal breaks no message into pieces

    def call(*arguments):
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_the_verbs_are_listed(run, arguments):
    code, out, _ = run(*arguments)
    assert code == 0
    for verb, what in cli.VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(what)}$", out, re.MULTILINE)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(run, flag):
    assert run(flag)[:2] == (0, version("fastloop") + "\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_choices_and_settings(run, verb):
    code, out, _ = run(verb, *(["denoise"] if verb == "bench" else []), "--help")
    assert code == 0
    for field in dataclasses.fields(schemas.SCHEMAS[verb]):
        assert re.search(rf"^{field.name}:", out, re.MULTILINE), field.name
    with initialize_config_module("fastloop.configs", version_base="1.3"):
        composed = compose(verb, return_hydra_config=True)
    for group in composed.hydra.runtime.choices:
        if not group.startswith("hydra/"):
            assert f"{group}= one of {', '.join(options(group))}" in out


@pytest.mark.parametrize("words", [["-h"], ["help"]])
@pytest.mark.parametrize("asked", [["info"], ["bench", "decode"], ["eval", "sim=toy"]])
def test_help_may_stand_anywhere(run, asked, words):
    expected = run(*asked, "--help")
    assert expected[0] == 0
    assert run(*asked, *words) == run(*words, *asked) == expected


@pytest.mark.parametrize("words", [["bench", "--help"], ["help", "bench"]])
def test_help_of_bench_says_what_each_task_is(run, words):
    code, out, _ = run(*words)
    assert code == 0
    for task in cli.TASKS["bench"]:
        assert re.search(rf"^  {task} +[A-Z].+[^.]$", out, re.MULTILINE), task
    assert "  server    A policy server in a process of its own, and clients that ask" in out


def test_help_shows_what_the_words_compose(run):
    code, out, _ = run("eval", "sim=metadrive_map", "episodes=7", "--help")
    assert code == 0
    assert "fastloop.sims.metadrive.map.MetaDriveMap" in out
    assert re.search("^episodes: 7$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "sim=nothing"], "Could not find 'sim/nothing'"),
        (["eval", "episodes=many"], "could not be converted to Integer"),
        (["eval", "accel.kind=magic"], "unknown accelerator 'magic'"),
        (["eval", "+episode=3"], "unknown setting 'episode'"),
        (["bench", "decod"], "cannot bench 'decod'"),
        (["bench", "episodes=3"], "say what to bench"),
    ],
)
def test_help_with_a_mistake_tells_the_mistake(run, words, told):
    code, out, err = run(*words, "--help")
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_there(verb):
    module = __import__(f"fastloop.verbs.{verb}", fromlist=["run"])
    assert callable(module.run)
    assert (CONFIGS / f"{verb}.yaml").is_file()
    assert set(cli.VERBS) == set(schemas.SCHEMAS)


def test_an_unknown_verb_lists_the_verbs(run):
    code, _, err = run("evaluate")
    assert code == 2
    assert "unknown verb 'evaluate'; have: " + ", ".join(cli.VERBS) in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evl"], "eval"),
        (["bench", "decod"], "decode"),
        (["eval", "episode=3"], "episodes"),
        (["eval", "+episode=3"], "episodes"),
        (["eval", "acel.budget=3"], "accel"),
        (["eval", "accel.budgt=3"], "accel.budget"),
        (["eval", "+accel.budgt=3"], "accel.budget"),
    ],
)
def test_what_is_misspelt_is_asked_for(run, words, meant):
    code, _, err = run(*words)
    assert code == 2
    assert err.endswith(f"\ndid you mean {meant}?\n")


def test_nothing_near_is_asked_for_where_nothing_is(run):
    assert "did you mean" not in run("zzz")[2]
    assert "did you mean" not in run("eval", "zzz=3")[2]


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_an_unknown_choice_lists_the_choices(run, group):
    verb = GROUPS[group]
    code, _, err = run(verb, f"{group}=nothing", *NEEDED.get(verb, []))
    assert code == 2
    assert f"Could not find '{group}/nothing'" in err
    for option in options(group):
        assert re.search(rf"^\s+{option}$", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "setting", "have"),
    [
        ("episode=3", "episode", "policy, accel, sim, clock, episodes"),
        ("+episode=3", "episode", "policy, accel, sim, clock, episodes"),
        ("accel.budgt=3", "accel.budgt", "kind, budget, union"),
        ("+accel.budgt=3", "accel.budgt", "kind, budget, union"),
        ("policy.sampler.steps=3", "policy.sampler.steps", "kind, num_train_timesteps"),
        ("+policy.sampler.steps=3", "policy.sampler.steps", "kind, num_train_timesteps"),
        ("sim.speed=3", "sim.speed", "max_steps; +sim.speed=... adds it"),
    ],
)
def test_an_unknown_setting_lists_the_settings(run, override, setting, have):
    code, _, err = run("eval", override)
    assert code == 2
    assert f"unknown setting '{setting}'; have: " in err
    assert have in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "episodes=many"], "'many' of type 'str' could not be converted to Integer"),
        (["eval", "policy.sampler.num_inference_steps=ten"], "could not be converted to Integer"),
        (["eval", "accel.kind=magic"], "unknown accelerator 'magic'; choose one of none, exact"),
        (["eval", "--episodes=3"], "settings are name=value, such as episodes=3\n"),
        (["eval", "x.ckpt"], "'x.ckpt' is no setting: settings are name=value, such as episodes="),
        (["bench", "denoise", "dp_lift"], "such as policy=dp_lift\n"),
        (["eval", "policy.checkpoint=/not/there", "sim=toy"], "shipped: "),
        (["eval", "sim=toy", "sim._target_=os.system"], "inside fastloop"),
        (["eval", "sim=toy", "+sim.speed=3"], "does not take"),
        (["train"], "dataset.path has no default; say dataset.path=..."),
        (["train", "dataset.path=/not/there"], "fastloop record out=/not/there"),
        (["train", "network.inputs=[smell]", "dataset.path=x"], "PushT shows no smell"),
        (["train", "save_every=0", "dataset.path=x"], "save_every"),
        (["record", "sim=toy", "expert=toy"], "out has no default; say out=..."),
        (["record", "out=x", "episodes=0"], "episodes must be at least 1, got 0"),
        (["record", "out=x", "n_action_steps=5"], "no student is named: say student=..."),
        (["info"], "say which checkpoint"),
        (["info", "ckpt=/not/there"], "there is no checkpoint at /not/there"),
    ],
)
def test_a_mistake_is_told_in_one_message(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith(f"fastloop {arguments[0]}: ")
    assert "Traceback" not in err


def test_a_mistake_leaves_no_run_folder(run, tmp_path):
    run("train", "dataset.path=/not/there")
    run("record", "out=x", "episodes=0")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_130(run, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    from fastloop.verbs import info

    monkeypatch.setattr(info, "run", interrupted)
    code, _, err = run("info", "ckpt=x")
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err


INTERRUPTED = """
import signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background

class Interrupting:
    def find_spec(self, name, *_):
        if name == "torch":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                {then}

sys.meta_path.insert(0, Interrupting())
from fastloop import cli
{call}
"""


@pytest.mark.parametrize(
    ("call", "then"),
    [
        ("cli.command()", "pass  # as NumPy and torch do here and there"),
        ("sys.exit(cli.main())", "raise"),
    ],
)
def test_ctrl_c_is_answered_while_torch_is_imported(call, then):
    program = INTERRUPTED.format(call=call, then=then)
    words = [sys.executable, "-c", program, "info", "ckpt=x"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "interrupted; what was finished is kept\n"


RUNNING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
from fastloop import cli
from fastloop.verbs import info

def interrupted(_):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        print("tidied up")

info.run = interrupted
cli.command()
"""


def test_a_verb_that_runs_tidies_up_after_ctrl_c():
    words = [sys.executable, "-c", RUNNING, "info", "ckpt=x"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (130, "tidied up\n")
    assert ended.stderr == "interrupted; what was finished is kept\n"


def test_a_fault_of_ours_is_not_hidden(run, monkeypatch):
    def broken(_):
        raise ZeroDivisionError

    from fastloop.verbs import info

    monkeypatch.setattr(info, "run", broken)
    with pytest.raises(ZeroDivisionError):
        run("info", "ckpt=x")


def composed(verb, *overrides):
    return cli.configure(verb, [*NEEDED.get(verb, []), *overrides])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes_to_its_dataclass(verb):
    made = composed(verb)
    assert type(made) is schemas.SCHEMAS[verb]
    OmegaConf.to_yaml(OmegaConf.structured(made))


CHOICES = [
    (group, option)
    for group in sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
    if not group.startswith("__")
    for option in options(group)
]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_composes_and_names_what_exists(group, option):
    verb, *needed = OF_THEIR_OWN.get((group, option), [GROUPS[group]])
    made = getattr(composed(verb, f"{group}={option}", *needed), group)
    text = (CONFIGS / group / f"{option}.yaml").read_text()
    assert text.startswith("# "), "the first line says why"
    if isinstance(made, dict):
        module, _, name = made["_target_"].rpartition(".")
        target = getattr(__import__(module, fromlist=[name]), name)
        inspect.signature(target).bind(**{k: v for k, v in made.items() if k != "_target_"})


def test_the_groups_tested_are_all_there_are():
    assert {group for group, _ in CHOICES} == set(GROUPS)


def test_sampler_overrides_are_the_fields_of_a_sampler():
    ours = {f.name: f.type.removesuffix(" | None") for f in dataclasses.fields(SamplerOverrides)}
    assert ours == {field.name: field.type for field in dataclasses.fields(SamplerConfig)}
    assert not any(dataclasses.asdict(SamplerOverrides()).values())


def test_sampler_fields_need_no_plus():
    made = composed("eval", "policy.sampler.kind=ddim", "policy.sampler.num_inference_steps=10")
    assert (made.policy.sampler.kind, made.policy.sampler.num_inference_steps) == ("ddim", 10)


def test_shipped_policies_have_a_choice_each():
    shipped = {folder.name for folder in WEIGHTS.glob("*") if folder.is_dir()}
    assert shipped <= set(options("policy"))
