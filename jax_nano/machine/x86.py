"""x86-64: every processor that is named, and LLVM's other names of them."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.machine import x86_amd, x86_atom, x86_intel
from jax_nano.machine.fitted import fitted_for
from jax_nano.machine.isa import caches
from jax_nano.machine.x86_isas import AMX, AVX2, AVX512

__all__ = ["ALIASES", "AMX", "AVX2", "AVX512", "ISAS", "LICENSED", "MACHINES", "caches"]

# Those that no products were measured on are taken to be like another: Intel's servers, which have a mesh and a large
# L2, like Sapphire Rapids, and all others like Zen 5.
LIKE = {machine.name: "sapphirerapids" for machine in x86_intel.SERVERS}
PROCESSORS = (*x86_amd.PROCESSORS, *x86_intel.SERVERS, *x86_intel.CLIENTS, *x86_atom.PROCESSORS)
MACHINES = tuple(
    replace(machine, fitted=fitted_for(machine.name, LIKE.get(machine.name, "znver5"))) for machine in PROCESSORS
)
ISAS = (AMX, AVX512, AVX2)  # best first

# LLVM's names of processors that are, for all that is said here, another one: but for sizes of caches, which Linux
# tells, their cores are of the same kind.
ALIASES = {
    # AMD. Excavator has two 128-bit units for two threads.
    "bdver4": "znver1",
    # Intel's servers.
    "skx": "skylake-avx512",
    "graniterapids-d": "graniterapids",
    # Intel's clients: Rocket Lake and Tiger Lake have Ice Lake's cores, or Willow Cove with more L2.
    "core-avx2": "haswell",
    "broadwell": "haswell",
    "rocketlake": "icelake-client",
    "tigerlake": "icelake-client",
    "raptorlake": "alderlake",
    "meteorlake": "alderlake",
    "arrowlake-s": "arrowlake",
    "lunarlake": "arrowlake",
    # Cougar Cove and Darkmont, which have no guide yet, are taken to compute as Lion Cove and Skymont.
    "pantherlake": "arrowlake",
    "wildcatlake": "arrowlake",
    # Efficiency cores, and Xeon Phi.
    "grandridge": "sierraforest",
    "knm": "knl",
    "mic-avx512": "knl",
    # Levels that processors share: the first ones that had them.
    "x86-64-v3": "haswell",
    "x86-64-v4": "skylake-avx512",
    # What compilers write for the dispatch of functions.
    "core-4th-gen-avx": "haswell",
    "core-4th-gen-avx-tsx": "haswell",
    "core-5th-gen-avx": "haswell",
    "core-5th-gen-avx-tsx": "haswell",
}

# Makers whose cores are another one's, by what CPUID calls both: Hygon builds on Zen by license.
LICENSED = {"HygonGenuine": "AuthenticAMD"}
