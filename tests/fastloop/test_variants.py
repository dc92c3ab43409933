"""Variants of a policy: what they share and cost, and that the loop says which planned."""

import numpy as np
import pytest
import torch

pytest.importorskip("rosbags", reason="messages are rosbags' (extra ros)")

from fastloop.accel.apply import accelerate
from fastloop.accel.config import AccelConfig
from fastloop.cli import configure
from fastloop.deploy.assembly import make_loop
from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.clock import VirtualClock
from fastloop.deploy.config import InputConfig
from fastloop.deploy.conversions.odometry import make_odometry
from fastloop.deploy.messages import Messages
from fastloop.deploy.schedule import Schedule
from fastloop.deploy.transport.base import Sample
from fastloop.policies.cacheflow.folder import save_cacheflow
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.driving.whole_plans import planner_of
from fastloop.policies.load import load_policy
from fastloop.policies.prepare import example_history
from fastloop.policies.rng import Rng
from fastloop.policies.spec import ActionSpec, PolicySpec, TensorSpec
from fastloop.variants import load_variants, read_variants

EGO = "observation.ego_states"


@pytest.fixture(scope="module")
def cache_plan(arm, tmp_path_factory):
    """A plan that was calibrated for the arm's policy."""
    policy = load_policy(arm)
    torch.manual_seed(0)
    seen = (torch.randn(10, 8, 8, 2), torch.randn(8, 2, 2))
    fast = accelerate(policy, AccelConfig("bac", budget=3, union=1), observations=seen)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    fast.loop.fast.plan.save(path)
    return path


@pytest.fixture(scope="module")
def cacheflow(tmp_path_factory):
    """The folder of a table of plans for the arm."""
    torch.manual_seed(0)
    seen = Samples(torch.randn(64, 4, 2), 0.01 * torch.randn(64, 6, 2))
    sizes = {"dims": 4, "components": 4, "width": 16, "flow_layers": 2, "flow_width": 16}
    model = CacheFlowModel.new(CacheFlowConfig(**sizes, budget=64), seen)
    spec = PolicySpec(
        {"observation.state": TensorSpec((2,))},
        ActionSpec(2, "joint_position", (-2.0,) * 2, (2.0,) * 2),
        n_obs_steps=4, horizon=9, n_action_steps=3, control_hz=10.0,
    )  # fmt: skip
    policy = CacheFlowPolicy(spec, CacheFlow.build(model, seen), samples=4)
    return save_cacheflow(tmp_path_factory.mktemp("cacheflow") / "cacheflow", policy)


def on_arm(arm, variants):
    config = configure("run", [f"policy.checkpoint={arm}", "policy.threads=1"])
    deploy = config.deploy
    deploy.body, deploy.joints, deploy.variants = "arm", ["a", "b"], variants
    deploy.state = InputConfig("/joint_states", "sensor_msgs/msg/JointState", 0.3)
    deploy.inputs = {"observation.state": InputConfig()}
    return config


def on_road(planner, variants):
    config = configure("run", [f"policy.checkpoint={planner}", "policy.threads=1"])
    config.deploy.inputs[EGO].shape = [16, 6]
    config.deploy.variants = variants
    return config


def evaluations(policy):
    history, rng = example_history(policy.spec), Rng.for_envs(0, [0], [0])
    return policy.plan(history, rng=rng).report.network_evaluations


def test_cache_plans_steps_and_another_policy(arm, cache_plan, cacheflow):
    variants, latencies = load_variants(
        on_arm(
            arm,
            {
                "full": {},
                "calibrated": {"accel": {"plan": str(cache_plan)}},
                "uniform": {"accel": {"kind": "uniform", "budget": 2}},
                "steps": {"sampler": {"kind": "ddim", "num_inference_steps": 2}},
                "instant": {"checkpoint": str(cacheflow)},
            },
        )
    )
    assert list(variants) == list(latencies)
    assert min(latencies.values()) > 0
    weights = {name: getattr(policy, "model", None) for name, policy in variants.items()}
    assert weights["full"] is weights["calibrated"] is weights["uniform"]
    plans = {name: variants[name].loop.fast.plan for name in ("full", "calibrated", "uniform")}
    computed = {name: int(plan.mask().sum()) for name, plan in plans.items()}
    assert computed["uniform"] < computed["calibrated"] < computed["full"]
    assert evaluations(variants["steps"]) == 2
    assert isinstance(variants["instant"], CacheFlowPolicy)
    from fastloop.deploy.planner import SessionPlanner

    planner = SessionPlanner(variants, {"observation.state": lambda seen: torch.zeros(2)})
    assert planner.window == 4
    assert planner.session.histories[0].frames.maxlen == 9  # the table looks back the farthest


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two joints that move for three seconds."""
    messages, kind = Messages(), "sensor_msgs/msg/JointState"
    path = tmp_path_factory.mktemp("joints") / "joints.mcap"
    with BagWriter(path, messages) as bag:
        for index in range(60):
            stamp = 10**18 + index * 50_000_000
            place = np.sin(0.1 * index) * np.array([1.0, -2.0])
            state = messages.type(kind)(
                messages.header(stamp, ""), ["a", "b"], place, 0 * place, 0 * place
            )
            bag.write(Sample("/joint_states", kind, messages.encode(state), stamp, stamp))
    return path


def test_a_plan_is_calibrated_on_a_recording(arm, recording):
    config = on_arm(arm, {"full": {}, "cached": {"accel": {"kind": "bac", "budget": 3}}})
    config.deploy.calibration.bag = str(recording)
    config.deploy.calibration.observations = 6
    told = []
    variants, _ = load_variants(config, told.append)
    assert told == ["calibrating cached", ""]
    plan = variants["cached"].loop.fast.plan
    assert (plan.provenance.algorithm, plan.provenance.observations) == ("bac", 6)
    assert plan.computed < variants["full"].loop.fast.plan.computed
    again = load_variants(config)[0]["cached"].loop.fast.plan
    assert torch.equal(torch.as_tensor(again.mask()), torch.as_tensor(plan.mask()))
    assert evaluations(variants["cached"]) == 10


def test_a_recording_that_is_too_short_is_no_reason_to_guess(arm, recording):
    config = on_arm(arm, {"cached": {"accel": {"kind": "unified", "budget": 3}}})
    config.deploy.calibration.bag = str(recording)
    config.deploy.calibration.observations = 100
    with pytest.raises(ValueError, match=r"'cached': .*moments to look at, 100 are wanted"):
        load_variants(config)


def test_a_language_model_writes_in_several_ways(vlm_folder):
    rollouts = {"decoding": {"rollouts": 2, "temperature": 0.5}}
    config = on_road(vlm_folder, {"two": rollouts, "one": {}, "none": {"checkpoint": "idle"}})
    config.deploy.variants["none"]["checkpoint"] = "constant_velocity"
    camera = InputConfig("/camera", "sensor_msgs/msg/Image", shape=[3, 28, 56])
    config.deploy.inputs |= {
        "observation.intent": InputConfig("/command", "std_msgs/msg/UInt8", None),
        "observation.images.front_left": camera,
        "observation.images.front": camera,
    }
    variants, _ = load_variants(config)
    ways = [planner_of(policy) for policy in variants.values()]
    assert [way.decoding.rollouts for way in ways[:2]] == [2, 1]
    assert ways[0].model is ways[1].model
    from fastloop.deploy.planner import inputs_of

    assert set(inputs_of(variants)) == set(config.deploy.inputs) - {"observation.ego_heading"}
    make_loop(
        config.deploy, variants, dict.fromkeys(variants, 0.1), Messages(), VirtualClock()
    )  # every input has a reader


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speed": 1}, "'speed' not in 'VariantConfig'; variants say checkpoint, .*accel"),
        ({"accel": {"kind": "fast"}}, "'quick': unknown accelerator 'fast'"),
        ({"accel": {"kind": "bac"}}, "`fastloop calibrate` saves a plan.*deploy.calibration.bag"),
        ({"sampler": {"steps": 3}}, "'steps' not in"),
    ],
)
def test_what_variants_do_not_say(changes, words):
    with pytest.raises(ValueError, match=words):
        read_variants({"quick": changes})


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"a": {"decoding": {"rollouts": 2}}}, "'a': .*writes nothing"),
        ({"a": {}, "b": {"checkpoint": "constant_velocity", "accel": {"kind": "uniform"}}}, "'b'"),
    ],
)
def test_what_does_not_go_with_a_policy(planner, variants, words):
    with pytest.raises(ValueError, match=words):
        load_variants(on_road(planner, variants))


def test_the_loop_steps_down_and_up_and_every_plan_says_which(planner):
    config = on_road(
        planner,
        {
            "full": {},
            "quick": {"accel": {"kind": "uniform", "budget": 2}},
            "instant": {"checkpoint": "constant_velocity"},
        },
    )
    deploy = config.deploy
    huge = {"jerk": 1e6, "acceleration": 1e6, "braking": 1e6, "lateral": 1e6, "curvature": 1e3}
    deploy.limits = {**huge, "start_speed": 100.0, "speed": 100.0}
    variants, _ = load_variants(config)
    messages, clock = Messages(), VirtualClock()
    needed = {"full": 0.05, "quick": 0.02, "instant": 0.001}
    loop = make_loop(deploy, variants, needed, messages, clock)
    slower = 1.0
    loop.worker._latency = lambda job: slower * needed[job.variant]
    schedule = None
    told = []
    for number in range(180):
        slower = 3.0 if 20 <= number < 60 else 20.0 if 60 <= number < 80 else 1.0
        now = clock.wall_ns()
        point = np.array([8.0 * clock.now(), 0.0, 0.0, 8.0])
        data = messages.encode(make_odometry(messages, now, point))
        loop.inputs.offer(Sample(deploy.state.topic, deploy.state.type, data, now, now))
        if schedule is None:
            assert loop.ready() == ""
            schedule = Schedule(clock.now(), 0.1)
        slot = schedule.following(clock.now())
        clock.sleep_until(schedule.time(slot))
        told.append(loop.tick(slot, schedule.time(slot)).variant)
    assert set(told[5:20]) == {"full"}
    assert set(told[30:60]) == {"quick"}
    assert set(told[70:80]) == {"instant"}
    assert told[-1] == "full"  # the slow plans are no longer among the last 64
