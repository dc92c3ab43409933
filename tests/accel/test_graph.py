import threading
import time
import warnings

import pytest
import torch

from fastloop.accel.graph import CudaRecorder, Graph, recording


def double_and_sum(x, y=None):
    return 2 * x, None if y is None else x.sum() + y


@pytest.fixture
def recorder(fake_recorder):
    return fake_recorder()


@pytest.fixture
def graph(recorder):
    return Graph(double_and_sum, recorder)


def test_a_shape_is_recorded_once_and_replayed_on_what_it_is_given(graph, recorder):
    for turn in range(3):
        x, y = torch.full((2, 3), float(turn)), torch.tensor(10.0)
        with recording():
            results, why = graph(x, y)
        assert why == ""
        for result, expected in zip(results, double_and_sum(x, y), strict=True):
            assert torch.equal(result, expected)
    assert (recorder.warmed, recorder.captured, recorder.replayed) == (1, 1, 3)


def test_what_is_not_prepared_runs_as_it_is_and_says_so(graph, recorder):
    results, why = graph(torch.ones(4), torch.tensor(1.0))
    assert torch.equal(results[0], torch.full((4,), 2.0))
    assert why == "no CUDA graph was prepared for (4,) and ()"
    assert recorder.warmed == recorder.captured == recorder.replayed == 0
    with recording():
        graph(torch.ones(4), torch.tensor(1.0))
    assert graph(torch.ones(4), torch.tensor(1.0))[1] == "", "once recorded, it stays so"
    assert graph(torch.ones(5), torch.tensor(1.0))[1], "another shape is not"


def test_neither_arguments_nor_results_are_the_recordings_memory(graph):
    with recording():
        graph(torch.zeros(3))
    x = torch.ones(3)
    (first, _), _ = graph(x)
    (second, _), _ = graph(torch.full((3,), 5.0))
    assert torch.equal(first, torch.full((3,), 2.0)), "a later call does not write into it"
    first.zero_(), x.zero_(), second.zero_()
    (third, _), _ = graph(torch.full((3,), 7.0))
    assert torch.equal(third, torch.full((3,), 14.0))


def test_shapes_dtypes_and_missing_arguments_are_recordings_of_their_own(graph, recorder):
    variants = [
        (torch.ones(1, 2), None),
        (torch.ones(3, 2), None),
        (torch.ones(3, 2, dtype=torch.float64), None),
        (torch.ones(3, 2), torch.tensor(1.0)),
    ]
    with recording():
        for arguments in variants:
            graph(*arguments)
    assert recorder.captured == 4
    for turn in range(2):
        for arguments in variants:
            (twice, total), why = graph(*arguments)
            assert why == ""
            expected, wanted = double_and_sum(*arguments)
            assert twice.dtype == expected.dtype
            assert torch.equal(twice, expected), f"turn {turn}"
            assert (total is None) == (wanted is None)
    assert recorder.captured == 4


def test_a_capture_that_fails_is_warned_of_once_with_its_cause(fake_recorder):
    broken = RuntimeError("operation failed due to a previous error during capture")
    broken.__context__ = RuntimeError("a value was waited for\nand more of it")
    recorder = fake_recorder(broken)
    graph = Graph(double_and_sum, recorder)
    with recording(), pytest.warns(RuntimeWarning, match="a value was waited for; it runs") as told:
        (twice, _), why = graph(torch.ones(2))
    assert len(told) == 1
    assert torch.equal(twice, torch.full((2,), 2.0))
    assert why == "the CUDA graph of (2,) could not be captured: a value was waited for"
    with recording(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graph(torch.ones(2))[1] == why
    assert graph(torch.ones(2))[1] == why
    assert (recorder.captured, recorder.replayed) == (1, 0), "it is not tried again"


def test_a_call_that_fails_is_no_failed_capture(recorder):
    broken = True

    def function(x):
        if broken:
            raise RuntimeError("the device went away")
        return (x + 1,)

    graph = Graph(function, recorder)
    with recording(), pytest.raises(RuntimeError, match="the device went away"):
        graph(torch.ones(2))
    broken = False
    with recording():
        (more,), why = graph(torch.ones(2))
    assert (more.tolist(), why) == ([2.0, 2.0], "")


def test_recording_is_of_the_thread_that_prepares(graph, recorder):
    with recording():
        other = threading.Thread(target=graph, args=(torch.ones(2),))
        other.start()
        other.join()
        assert recorder.captured == 0
        graph(torch.ones(2))
    assert recorder.captured == 1


def test_threads_do_not_read_each_others_arguments(recorder):
    def slowly(x):
        before = x.clone()
        time.sleep(0.02)
        return (before + x,)

    graph = Graph(slowly, recorder)
    with recording():
        graph(torch.zeros(1))
    found = {}

    def call(number):
        found[number] = graph(torch.full((1,), float(number)))[0][0].item()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 2.0 * number for number in range(4)}


@pytest.mark.gpu
def test_a_cuda_graph_is_replayed_on_what_it_is_given():
    device = torch.device("cuda", torch.cuda.current_device())
    weight = torch.randn(64, 64, device=device)

    def function(x):
        for _ in range(20):
            x = torch.tanh(x @ weight)
        return x, None

    graph = Graph(function, CudaRecorder(device))
    inputs = {rows: torch.randn(rows, 64, device=device) for rows in (1, 5)}
    with torch.inference_mode(), recording():
        for x in inputs.values():
            assert graph(x)[1] == ""
    for turn in range(3):
        for rows, x in inputs.items():
            x.normal_()
            (result, _), why = graph(x)
            assert why == ""
            torch.testing.assert_close(result, function(x)[0], msg=f"{rows} rows, turn {turn}")


@pytest.mark.gpu
def test_a_value_that_is_waited_for_cannot_be_captured_and_the_device_goes_on():
    device = torch.device("cuda", torch.cuda.current_device())

    def function(x):
        return (x * x.sum().item(),)

    graph = Graph(function, CudaRecorder(device))
    x = torch.ones(3, device=device)
    with recording(), pytest.warns(RuntimeWarning, match="could not be captured"):
        (result,), why = graph(x)
    assert why
    assert result.tolist() == [3.0, 3.0, 3.0]
    assert torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    (result,), _ = graph(2 * x)
    assert result.tolist() == [12.0, 12.0, 12.0]
    other = Graph(lambda x: (x + 1,), CudaRecorder(device))
    with recording():
        (result,), why = other(x)
    assert (result.tolist(), why) == ([2.0, 2.0, 2.0], ""), "others are captured as before"
