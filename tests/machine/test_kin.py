"""Which machine a processor is taken for: every x86 name of LLVM's, and processors that nobody named."""

import pathlib
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from jax_nano.machine import host, kin, x86
from jax_nano.machine.x86_amd import ZEN1_128
from jax_nano.machine.x86_intel import COVE_512, COVE_TILES, LAKE_512_CLIENT, SUNNY_512_CLIENT

AMD, INTEL, HYGON = "AuthenticAMD", "GenuineIntel", "HygonGenuine"
RECORD = pathlib.Path(__file__).with_name("llvm_x86.txt").read_text().splitlines()
FEATURES = {
    name: frozenset(features.split())
    for name, _, features in (line.partition(":") for line in RECORD if line[0] != "#")
}
TARGETS = [name for name, features in FEATURES.items() if {"avx2", "fma", "f16c"} <= features]
MACHINES = {machine.name: machine for machine in x86.MACHINES}


def vendor_of(name):
    return AMD if name.startswith(("znver", "bdver")) else INTEL


def having(features):
    return lambda wanted: set(wanted) <= set(features)


def find(name, features, vendor=None):
    return kin.identify(name, vendor or vendor_of(name), having(features))


def identified(name, features, vendor=None):
    machine = find(name, features, vendor)
    assert machine
    return machine


def isas(machine):
    return [isa.name for isa in machine.isas]


def test_the_record_has_every_name_of_llvm():
    if not (llc := shutil.which("llc-22")):
        pytest.skip("llc-22 is not installed")
    command = [llc, "-mtriple=x86_64", "-mcpu=help"]
    text = subprocess.run(command, input="", capture_output=True, text=True, check=True).stderr
    cpus = text.partition("Available CPUs")[2].partition("Available features")[0]
    assert set(re.findall(r"^ +(\S+) +- ", cpus, re.M)) == FEATURES.keys()


@pytest.mark.parametrize("name", FEATURES)
def test_every_name_of_llvm_is_a_machine_with_all_its_instruction_sets_or_has_no_target(name):
    if name not in TARGETS:
        assert find(name, FEATURES[name]) is None
        return
    machine = identified(name, FEATURES[name])
    assert machine.stands_for == "", "somebody named it"
    has = having(FEATURES[name])
    assert isas(machine) == [isa.name for isa in x86.ISAS if has(isa.features)]
    assert all(has(dot.features) for isa in machine.isas for dot in isa.dots)


@pytest.mark.parametrize("name", TARGETS)
def test_a_processor_that_nobody_named_becomes_one_of_its_vendor_with_its_instruction_sets(name):
    known, machine = identified(name, FEATURES[name]), identified("generic", FEATURES[name], vendor_of(name))
    assert machine.stands_for == "generic"
    assert machine.vendor == known.vendor
    assert [isa.dots for isa in machine.isas] == [isa.dots for isa in known.isas]
    assert machine.cores.keys() == known.cores.keys()


@pytest.mark.parametrize(
    ("name", "isa", "core"),
    [
        *((name, "avx512", SUNNY_512_CLIENT) for name in ("icelake-client", "rocketlake", "tigerlake")),
        ("cannonlake", "avx512", LAKE_512_CLIENT),
        ("znver1", "avx2", ZEN1_128),
        ("bdver4", "avx2", ZEN1_128),
        ("diamondrapids", "amx", COVE_TILES),
        ("arrowlake", "avx2", MACHINES["arrowlake"].cores["avx2"]),
        ("lunarlake", "avx2", MACHINES["arrowlake"].cores["avx2"]),
        ("pantherlake", "avx2", MACHINES["arrowlake"].cores["avx2"]),
        ("gracemont", "avx2", MACHINES["gracemont"].cores["avx2"]),
        ("sierraforest", "avx2", MACHINES["gracemont"].cores["avx2"]),
        ("grandridge", "avx2", MACHINES["gracemont"].cores["avx2"]),
        ("knm", "avx2", MACHINES["knl"].cores["avx2"]),
    ],
)
def test_units_are_those_of_the_processor(name, isa, core):
    assert identified(name, FEATURES[name]).cores[isa] == core


def test_one_512_bit_unit_multiplies_and_adds_half_as_much_as_two():
    client, server = (MACHINES[name].cores["avx512"] for name in ("icelake-client", "icelake-server"))
    assert (client.dots_per_cycle, server.dots_per_cycle) == (1, 2)
    assert client.vector_per_cycle == server.vector_per_cycle


# Processors that nobody named


def test_zen_6_has_the_conversions_and_bytes_that_zen_5_lacks():
    features = FEATURES["znver5"] | {"avx512fp16", "avxvnniint8"}
    assert identified("znver6", features).stands_for == ""
    guessed = identified("znver5", features)  # as LLVM names it that does not know it
    assert (guessed.name, guessed.stands_for) == ("znver6", "znver5")
    assert guessed.isas[0].conversions == ("avx512fp16",)


def test_a_future_amd_with_amx_keeps_it_beside_amd_vectors():
    features = FEATURES["znver5"] | {"amx-tile", "amx-int8", "amx-bf16"}
    machine = identified("generic", features, AMD)
    assert isas(machine) == ["amx", "avx512", "avx2"]
    assert machine.name == "znver5"
    assert machine.cores["amx"] == COVE_TILES
    assert machine.cores["avx512"] == MACHINES["znver5"].cores["avx512"]
    assert {dot.name for dot in machine.isas[0].dots} == {"tdpbf16ps", "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"}


@pytest.mark.parametrize("name", ["tigerlake", "icelake-client", "cooperlake", "cascadelake", "skylake-avx512"])
def test_what_llvm_guesses_for_an_unknown_intel_does_not_lose_amx(name):
    machine = identified(name, FEATURES["graniterapids"])
    assert (machine.name, machine.stands_for) == ("graniterapids", name)
    assert isas(machine) == ["amx", "avx512", "avx2"]
    assert machine.cores["avx512"] == COVE_512


@pytest.mark.parametrize("hidden", ["avx512fp16", "serialize", "avxvnni", "cldemote"])
def test_what_a_hypervisor_hides_changes_nothing_else(hidden):
    machine = identified("generic", FEATURES["sapphirerapids"] - {hidden}, INTEL)
    assert machine.name == "sapphirerapids"
    assert isas(machine) == ["amx", "avx512", "avx2"]


@pytest.mark.parametrize("name", ["sapphirerapids", "znver5", "alderlake"])
def test_a_known_processor_without_its_best_instruction_set_is_no_guess(name):
    features = FEATURES[name] - {"amx-tile"} - {"avx512f"}
    machine = identified(name, features)
    assert (machine.name, machine.stands_for, isas(machine)) == (name, "", ["avx2"])


def test_alder_lake_with_avx512_is_taken_for_another():
    machine = identified("alderlake", FEATURES["alderlake"] | FEATURES["icelake-client"])
    assert machine.stands_for == "alderlake"
    assert isas(machine) == ["avx512", "avx2"]


def test_hygon_builds_on_zen():
    assert identified("generic", FEATURES["znver1"], HYGON).name == "znver1"
    assert identified("generic", FEATURES["znver4"], HYGON).name == "znver4"


def test_a_vendor_that_nobody_named_has_the_nearest_of_any():
    assert identified("generic", FEATURES["skylake"], "  Shanghai  ").name == "skylake"
    assert identified("generic", FEATURES["znver3"], "CentaurHauls").name == "znver3"


@pytest.mark.parametrize("missing", ["avx2", "fma", "f16c"])
def test_there_is_no_target_without_avx2_and_fma(missing):
    assert find("generic", FEATURES["haswell"] - {missing}, INTEL) is None
    assert find("haswell", FEATURES["haswell"] - {missing}) is None


def test_the_order_of_the_list_does_not_matter(monkeypatch):
    cases = [(name, FEATURES[name]) for name in TARGETS]
    before = [identified("generic", features, vendor_of(name)) for name, features in cases]
    monkeypatch.setattr(x86, "MACHINES", x86.MACHINES[::-1])
    assert [identified("generic", features, vendor_of(name)) for name, features in cases] == before


# The running machine


@pytest.fixture
def running(monkeypatch):
    """Makes this process run on a processor of some name and features."""
    host.detected.cache_clear()

    def run_on(name, features):
        native = host._native
        monkeypatch.setattr(native, "host_cpu", lambda: name)
        monkeypatch.setattr(native, "missing_features", lambda wanted: ",".join({*wanted.split(",")} - {*features}))
        monkeypatch.setattr(native, "tiles_denied", lambda: "")
        return host.detected

    yield run_on
    monkeypatch.undo()
    host.detected.cache_clear()


@pytest.fixture
def warned(monkeypatch):
    """What is warned of."""
    messages = []
    monkeypatch.setattr(host.config, "warn", messages.append)
    return messages


def test_a_guess_is_warned_of(running, warned, monkeypatch):
    monkeypatch.setattr(host, "vendor", lambda: INTEL)
    machine = running("tigerlake", FEATURES["diamondrapids"])()
    assert (machine.name, machine.stands_for) == ("diamondrapids", "tigerlake")
    (text,) = warned
    assert text == (
        "jax_nano does not know this processor (tigerlake) and takes it for diamondrapids, its nearest kin by "
        "instruction sets; if products are slow, JAX_NANO_AUTOTUNE=1 measures their plans"
    )


def test_a_known_processor_is_not_warned_of(running, warned):
    assert running("rocketlake", FEATURES["rocketlake"])().name == "icelake-client"
    assert not warned


def test_a_processor_without_a_target_says_what_is_needed(running):
    with pytest.raises(host.UnsupportedDot, match=re.escape("(ivybridge): it needs AVX2 and FMA")):
        running("ivybridge", FEATURES["ivybridge"])()


def test_the_vendor_is_read_from_cpuinfo(tmp_path):
    (tmp_path / "proc").mkdir()
    assert host.vendor(tmp_path) == ""
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: HygonGenuine\ncpu family\t: 24\n")
    assert host.vendor(tmp_path) == HYGON
    (tmp_path / "proc/cpuinfo").write_bytes(b"\xff\xfe no text")
    assert host.vendor(tmp_path) == ""


def test_machines_are_known_by_every_name():
    assert host.known("tigerlake").name == "icelake-client"
    assert host.known("graniterapids_d") == host.known("graniterapids")
    with pytest.raises(ValueError, match=r"^there is no machine pentium \(there are znver5, "):
        host.known("pentium")


@pytest.mark.parametrize("alias", x86.ALIASES)
def test_aliases_lead_to_machines_and_hide_none(alias):
    assert x86.ALIASES[alias] in MACHINES
    assert alias not in MACHINES


@pytest.mark.parametrize("machine", x86.MACHINES, ids=lambda machine: machine.name)
def test_every_machine_has_a_vendor_and_a_source_and_is_its_own_kin(machine):
    assert machine.vendor in (AMD, INTEL)
    assert (machine.tune or machine.name) in FEATURES, "LLVM warns of names that it does not know"
    assert len(machine.source) > 20
    same = kin.nearest(machine.vendor, machine.features.issuperset)
    assert same.features == machine.features
    assert kin.rate(same) >= kin.rate(machine)
    assert replace(machine, marks=()).features <= machine.features
