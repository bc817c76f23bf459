"""Plans: HLO written by hand, numbers counted by hand, and the compiler of TPUs."""

import math
import re
import runpy

import jax
import matplotlib.pyplot as plt
import pytest

from experiments import plan
from experiments.launch import collectives, plan_text, scaling_plot, step_costs, tpus
from experiments.sweeps import rows as sweep_rows
from segjax import config as config_lib
from segjax.analysis import hlo
from segjax.analysis.summary import Layer
from segjax.errors import UserError

GIB = 2**30

# A fusion named after its last operation, which holds a convolution; one without, of a
# batch normalization; a loop of 9 turns with a fusion of 10 cycles; collectives of
# 4 * 8 + 4 * 16, 9 * 2 * 32 and 4 * 64 bytes; and 4 * 9 * 128 bytes to another slice.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused.1 (a: bf16[8]) -> bf16[8] {
  %inner = f32[8]{0} convolution(%a), metadata={op_name="jit(step)/jvp(Net)/conv1/conv_general_dilated"}, backend_config={"estimated_cycles":"999"}
  ROOT %max = bf16[8]{0} maximum(%inner), metadata={op_name="jit(step)/jvp(Net)/jit(relu)/max"}
}

%fused.3 (a: bf16[8]) -> bf16[8] {
  %scaled = f32[8]{0} multiply(%a, %a), metadata={op_name="jit(step)/jvp(Net)/bn1/mul"}
  ROOT %max = bf16[8]{0} maximum(%scaled), metadata={op_name="jit(step)/jvp(Net)/jit(relu)/max"}
}

%body (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %work = bf16[8]{0} fusion(%p), calls=%fused.2, metadata={op_name="jit(step)/transpose(jvp(Net))/conv1/while/body/mul"}, backend_config={"estimated_cycles":"10"}
  ROOT %moved = bf16[2,16]{1,0:T(8,128)} all-gather(%work), dimensions={0}
}

%condition (p: (s32[], bf16[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  ROOT %less = pred[] compare(%p, %limit), direction=LT
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %relu = bf16[8]{0:T(256)(128)(2,1)S(1)} fusion(%x), kind=kOutput, calls=%fused.1, metadata={op_name="jit(step)/jvp(Net)/jit(relu)/max"}, backend_config={"estimated_cycles":"200"}
  %norm = bf16[8]{0} fusion(%relu), kind=kLoop, calls=%fused.3, metadata={op_name="jit(step)/jvp(Net)/jit(relu)/max"}, backend_config={"estimated_cycles":"20"}
  %sums = (f32[8]{0:T(128)}, f32[4,4]{1,0}) all-reduce(%x, %y), to_apply=%add
  %sent = (f32[9,1,128]{2,1,0:T(1,128)}, u32[], token[]) send(%sums, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %logged = (f32[8]{0}, u32[], token[]) send(%x, %token), channel_id=4, is_host_transfer=true
  %start = (f32[16]{0}, f32[64]{0}, u32[]) all-gather-start(%x), dimensions={0}
  %loop = (s32[], bf16[8]) while(%tuple), condition=%condition, body=%body
  ROOT %update = bf16[8]{0} add(%x, %x), metadata={op_name="jit(step)/add"}, backend_config={"estimated_cycles":"5"}
}
"""  # noqa: E501


def test_cycles_belong_to_layers_and_loops_count_every_turn():
    assert hlo.costs(PROGRAM) == [
        hlo.Cost("conv1", forward=200, backward=90),
        hlo.Cost("bn1", forward=20, backward=0),
        hlo.Cost("(optimizer)", forward=5, backward=0),
    ]


def test_operations_without_an_estimate_are_counted():
    scatter = (
        "  %pool = f32[8]{0} select-and-scatter(%x, %y), "
        'metadata={op_name="jit(step)/pool"}\n  ROOT %update'
    )
    assert hlo.without_estimate(PROGRAM) == {}
    changed = PROGRAM.replace("  ROOT %update", scatter)
    assert hlo.without_estimate(changed) == {"select-and-scatter": 1}
    inside = PROGRAM.replace("  %work = bf16[8]{0} fusion", "  %work = bf16[8]{0} sort")
    inside = inside.replace(', backend_config={"estimated_cycles":"10"}', "")
    assert hlo.without_estimate(inside) == {"sort": 9}


@pytest.mark.parametrize(
    "topology, slices, expected",
    [
        # Rows of 4 in both directions: one neighbour at the ends, 3 + 3 hops.
        ("v5e:4x4", 1, 2 * 90e6 * 15 / 16 / 90e9 + 2 * 6e-6),
        # Rings of 16: both directions of each, at most 8 hops.
        ("v5e:16x16", 1, 2 * 90e6 * 255 / 256 / 180e9 + 2 * 16e-6),
        # Rings in three directions.
        ("v5p:4x4x4", 1, 2 * 90e6 * 63 / 64 / 540e9 + 2 * 6e-6),
        ("v5e:1x1", 1, 0),
    ],
)
def test_time_of_an_all_reduce_by_hand(topology, slices, expected):
    found = tpus.parse(topology)
    counted = {"all-reduce": (1, 90_000_000)}
    assert collectives.seconds(counted, found, slices) == pytest.approx(expected)
    # Between four slices, a chip sends its share of the bytes 2 x 3/4 times.
    sent = 2 * 90e6 / found.chips * 3 / 4 / collectives.BANDWIDTH[found.generation][1]
    more = collectives.seconds(counted, found, 4) - expected
    assert more == pytest.approx(sent + collectives.ROUND_TRIP)


def test_weak_scaling_keeps_the_batch_per_chip(tmp_path):
    report = {
        "batch_per_chip": 8,
        "seconds": 0.1,
        "collectives": {"all-reduce": (108, 98_600_000)},
    }
    for generation in tpus.TPUS:
        rows = collectives.weak_scaling(report, generation)
        assert {row["chips"] for row in rows} >= {4, 16, 64, 256}
        assert rows[-1]["slices"] == 4 and rows[-1]["chips"] == 256
        for row in rows:
            images = 8 * row["chips"] * tpus.TPUS[generation].get("devices", 1)
            assert row["images_with_overlap"] == pytest.approx(images / 0.1)
            slower = images / (0.1 + row["network_seconds"])
            assert row["images_without_overlap"] == pytest.approx(slower)
    rows = collectives.weak_scaling(report, "v5e")
    assert "4 x 8x8" in scaling_plot.table(rows)
    scaling_plot.plot(rows, "PSPNet", tmp_path / "a.png")
    assert plt.imread(tmp_path / "a.png").shape[2] == 4


def test_bytes_of_collectives():
    assert hlo.collectives(PROGRAM) == {
        "all-reduce": (1, 4 * 8 + 4 * 16),
        "all-gather": (1 + 9, 4 * 64 + 9 * 2 * 32),
        "between slices": (1, 4 * 9 * 128),
    }


@pytest.mark.parametrize(
    "name, layer",
    [
        ("jit(step)/jvp(UNet)/enc0_conv1/conv_general_dilated", ("enc0_conv1", False)),
        ("jit(step)/transpose(jvp(PSPNet))/a/b/mul", ("a/b", True)),
        ("jit(step)/transpose(jvp(N))/c/while/body/closed_call/add", ("c", True)),
        ("jit(step)/transpose(jvp(N))/c/cond/branch_0_fun/mul", ("c", True)),
        ("jit(step)/jvp(UNet)/head/nhwi,io->nhwo/dot_general", ("head", False)),
        ("jit(step)/transpose(jvp(UNet))/a/vmap(conv_bn)/mul", ("a/conv_bn", True)),
        ("jit(step)/jvp(UNet)/jit(relu)/max", ("(relu)", False)),
        ("jit(step)/transpose(jvp(UNet))/concatenate", ("(concatenate)", True)),
        ("jit(step)/jvp()/reduce_sum", ("(loss)", False)),
        ("jit(step)/mul", ("(optimizer)", False)),
        ("", ("(unnamed)", False)),
    ],
)
def test_layer_of_an_operation(name, layer):
    assert hlo.layer_of(name) == layer


def test_refusals_of_the_compiler_are_understood():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    assert plan.out_of_memory(message) == (20.5, 15.75)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (1.53T) exceeds available HBM (30.75G)."
    )
    assert plan.out_of_memory(message) == (1.53 * 1024, 30.75)
    with pytest.raises(UserError, match="cannot compile: INTERNAL: no idea"):
        plan.out_of_memory("INTERNAL: no\n idea")


@pytest.mark.parametrize(
    "per_image, start", [(0.9, 1), (0.9, 100), (0.013, 2), (20, 1), (15.5, 3)]
)
def test_search_finds_the_largest_batch_of_linear_memory(per_image, start):
    calls = []

    def needed(number):
        calls.append(number)
        return 0.25 + per_image * number <= 15.75, 0.25 + per_image * number

    expected = math.floor((15.75 - 0.25) / per_image)
    assert plan.search_largest(needed, start, base=0.25, available=15.75) == (
        expected,
        expected + 1,
    )
    assert len(calls) == len(set(calls)) <= 6


def test_search_of_memory_that_saves_itself_stays_right_and_ends():
    """As when the compiler recomputes more the less room there is."""
    calls = []

    def needed(number):
        calls.append(number)
        return number <= 37, min(1 + number, 15.7) if number <= 37 else 16.0

    low, high = plan.search_largest(needed, 1, base=1, available=15.75)
    assert 15 <= low <= 37 and (high > 37 or not high) and len(calls) <= 6


def test_search_goes_on_in_large_steps_where_all_memory_seems_used():
    """Numbers of a U-Net on v5e:2x2, of which libtpu took 5000 per chip and more."""

    def needed(number):
        return number <= 5400, min(16.19 * number / 4915, 15.75)

    low, high = plan.search_largest(needed, 256, base=0, available=15.75)
    assert 5000 < low <= 5400 < high < 6000


def test_padding_counts_lanes_by_hand():
    layers = [
        # 64 and 64 of 128: 4 x the work. 1 of 128 and 128: 128 x.
        Layer("narrow", (3, 3, 64, 64), 0, 0, macs=1000),
        Layer("first", (3, 3, 1, 128), 0, 0, macs=10),
        Layer("wide", (3, 3, 128, 256), 0, 0, macs=4000),
        Layer("bn", (), 7, 7),
    ]
    (text,) = plan_text.padding_warnings(layers, 16)
    after = 4 * 1000 + 128 * 10 + 4000
    assert f"do {after / 5010:.2f} x their multiply-adds" in text
    assert "narrow (64 to 64), first (1 to 128):" in text and "wide" not in text
    batch, _ = plan_text.padding_warnings(layers, 12)
    assert batch.startswith("12 per chip is not a multiple of 8 sublanes")
    assert "1.33 x" in batch
    assert plan_text.padding_warnings(layers[2:], 8) == []
    assert "packed" not in text
    for form, said in ((False, "packed=True fills"), (True, "without regard to")):
        assert said in plan_text.padding_warnings(layers, 16, packed=form)[0]


def tiny(**overrides):
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4,)},
        data={"name": "scenes"},
        augment={"crop": (16, 16)},
        batch_size=8,
        **overrides,
    )


def planned(config, to):
    return plan.report(config, plan.network(config, to.chips), to=to)


def test_report_for_the_devices_of_this_machine():
    to = step_costs.Target("cpu:4", 4, jax.devices()[:4], 0.0, {})
    found = planned(tiny(), to)
    assert found["fits"] and found["batch_per_chip"] == 2
    # 3x3 of 3 to 4 and of 4 to 4 with scale and bias of each, 1x1 to 9 classes.
    parameters = 9 * 3 * 4 + 9 * 4 * 4 + 4 * 4 + 4 * 9 + 9
    assert found["parameters"] == parameters
    # Twice the parameters (momentum), statistics, step and the schedule's count.
    state = 4 * (2 * parameters + 4 * 4 + 2)
    assert found["state_gib"] * GIB == state
    # And the images and labels of this device; alignment takes a little more.
    examples = 2 * 16 * 16 * (3 + 1)
    assert 0 <= found["memory_gib"]["arguments"] * GIB - state - examples < 4096
    # Every gradient is summed over the devices, and so are the batch statistics.
    _, size = found["collectives"]["all-reduce"]
    assert 4 * parameters < size < 4 * parameters * 1.5
    macs = 16 * 16 * (9 * 3 * 4 + 9 * 4 * 4 + 4 * 9)
    assert found["model_flops"] == 3 * 2 * macs * 2
    assert re.match("fits +yes", plan_text.lines(found)[1])
    # CPUs loop over the taps of some gradients.
    assert ", loops once" in plan_text.lines(found)[4]


def test_shares_of_the_state_are_planned(monkeypatch):
    """Three quarters of the two larger kernels and their momenta are elsewhere."""
    monkeypatch.setattr(plan.sharding, "SMALL", 100)
    to = step_costs.Target("cpu:4", 4, jax.devices()[:4], 0.0, {})
    found = planned(tiny(state_sharding="parameters"), to)
    copies = 4 * (2 * found["parameters"] + 4 * 4 + 2)
    state = copies - 2 * 4 * (9 * 3 * 4 + 9 * 4 * 4) * 3 / 4
    assert found["state_gib"] * GIB == state
    examples = 2 * 16 * 16 * (3 + 1)
    arguments = found["memory_gib"]["arguments"] * GIB
    assert arguments == pytest.approx(state + examples, abs=512)
    # Kernels are gathered once, not for the forward and for the backward pass.
    assert found["collectives"]["all-gather"] == (2, 4 * (9 * 3 * 4 + 9 * 4 * 4))


def test_report_without_a_compiler_is_analytic_and_says_so():
    config = tiny(init_from="/only/on/the/workers")
    found = planned(config, step_costs.Target("gpu:8", 8, None, 0, {}))
    text = "\n".join(plan_text.lines(found))
    assert "analytic only" in text and "fits" not in found


@pytest.mark.parametrize("topology", ["gpu", "gpu:0", "gpu:4x4"])
def test_gpus_are_a_number(topology):
    with pytest.raises(UserError, match=f"--topology={topology}: expected gpu:N"):
        plan.target(topology, 1)


def test_batch_must_split_over_the_chips():
    to = step_costs.Target("v5e:4x4", 16, None, 0, {})
    with pytest.raises(UserError, match="config.batch_size=8 .* 16 devices"):
        planned(tiny(), to)


def test_gpu_that_is_too_small_is_told_although_its_compiler_refuses_nothing(
    monkeypatch,
):
    tried = {"fits": True, "needed_gib": 40.0, "compile_seconds": 1.0}
    monkeypatch.setattr(plan, "compile_step", lambda *_, **__: (dict(tried), None))
    for gib, fits in ((16.0, False), (80.0, True)):
        found = planned(
            tiny(), step_costs.Target("gpu:4", 4, jax.devices()[:4], gib, {})
        )
        assert found["fits"] == fits


def test_probes_of_the_largest_batch_keep_the_groups_of_batch_normalization(
    monkeypatch,
):
    """Groups of two chips, whatever the images per chip."""
    tried = []

    def compile_step(config, net, *, devices, batch):
        tried.append((batch, config.bn_batch_size))
        return {"fits": batch <= 20, "needed_gib": batch, "compile_seconds": 1.0}, None

    monkeypatch.setattr(plan, "compile_step", compile_step)
    to = step_costs.Target("cpu:4", 4, jax.devices()[:4], 0.0, {})
    config = tiny(bn_batch_size=4)
    numbers = plan.report(config, plan.network(config, 4), to=to, largest=True)
    assert numbers["largest_batch"] == 20 and len(tried) > 2
    assert all(batch == 2 * group for batch, group in tried)


ROWS = """
from segjax.config import make
def get_config():
    return make(model={"padding": "same", "norm": "batch", "widths": (4,)},
                data={"scenes_size": (32, 32)}, batch_size=4)
def sweep():
    for size in SIZES:
        yield {"batch_size": size}
"""


def test_rows_are_all_checked_before_one_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "compile_step", lambda *_, **__: pytest.fail("compiled"))
    to = step_costs.Target("cpu:2", 2, jax.devices()[:2], 0.0, {})
    path = tmp_path / "sweep.py"
    path.write_text(ROWS.replace("SIZES", "(4, 3)"))
    base = runpy.run_path(str(path))["get_config"]()
    with pytest.raises(UserError, match="row batch_size=3-.*over 2 devices"):
        plan.plan_rows(sweep_rows.read(str(path), base)[0], to=to)


def test_a_row_that_cannot_compile_leaves_the_others_in_the_table(
    tmp_path, monkeypatch, capsys
):
    def compile_step(config, net, *, devices, batch):
        if batch == 4:
            raise UserError("cannot compile: INTERNAL")
        return {"fits": False, "needed_gib": 9.0, "compile_seconds": 1.0}, None

    monkeypatch.setattr(plan, "compile_step", compile_step)
    to = step_costs.Target("cpu:2", 2, jax.devices()[:2], 0.0, {})
    path = tmp_path / "sweep.py"
    path.write_text(ROWS.replace("SIZES", "(4, 8)"))
    base = runpy.run_path(str(path))["get_config"]()
    table = plan_text.sweep_table(
        plan.plan_rows(sweep_rows.read(str(path), base)[0], to=to)
    )
    _, broken, other = table.splitlines()
    assert broken.startswith("batch_size=4-") and " error " in broken
    assert other.startswith("batch_size=8-") and " NO " in other
    assert "error: row batch_size=4-" in capsys.readouterr().err


def test_missing_compiler_says_how_to_get_it(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError(
            "JAX TPU support not installed; cannot generate TPU topology"
        )

    monkeypatch.setattr(tpus.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]'"):
        tpus.compile_only_devices(tpus.parse("v5e:4x4"), 1)


# With the compiler of TPUs: pip install 'jax[tpu]'


@pytest.fixture(scope="module")
def v5e():
    pytest.importorskip("libtpu")
    return plan.target("v5e:2x2", 1)


def test_tpu_step_has_cycles_by_paper_layer_and_nothing_made_for_cpus(v5e):
    config = tiny()
    config.model.widths = (16,)
    net = plan.network(config, v5e.chips)
    found, compiled = plan.compile_step(config, net, devices=v5e.devices, batch=8)
    assert found["fits"] and found["needed_gib"] < 0.1
    # On CPUs, the gradient of a kernel of 16 channels is a loop over its taps.
    assert " while(" not in compiled.as_text()
    found = step_costs.costs(compiled, v5e, model_flops=2 * net.flops, images=8)
    assert found["cycles"] > 1000 and 0 < found["utilisation"] < 1
    layers = {name for name, *_ in found["costliest"]}
    assert layers & {"enc0_conv1", "enc0_conv2", "enc0_bn1", "enc0_bn2"}
    assert sum(a + b for _, a, b in found["costliest"]) <= 1
    assert found["collectives"]["all-reduce"][1] > 4 * net.parameters


def test_tpu_batch_too_large_for_the_chip_is_caught(v5e):
    config = tiny()
    # Per chip 2^18 maps of 64x64x4 in float32: 16 GiB each. (The compiler sees at once
    # that 15.75 GiB cannot do; it thinks long about batches that nearly fit.)
    config.data.scenes_size = (64, 64)
    config.batch_size = 4 << 18
    found = planned(config, v5e)
    assert not found["fits"]
    assert found["needed_gib"] > found["available_gib"] == v5e.available
    assert re.match("fits +NO", plan_text.lines(found)[1])


@pytest.mark.parametrize(
    "topology", ["v4:2x2x4", "v5e:2x4", "v5p:2x2x1", "v6e:4x4", "tpu7x:2x2x1"]
)
def test_libtpu_agrees_about_chips_and_hosts_of_slices(topology):
    pytest.importorskip("libtpu")
    found = tpus.parse(topology)
    devices = tpus.compile_only_devices(found, 2)
    # Of tpu7x, each half of a chip is a device.
    assert len(devices) == 2 * found.chips * found.kind.get("devices", 1)
    assert len({device.process_index for device in devices}) == 2 * found.hosts
    assert {device.slice_index for device in devices} == {0, 1}
