"""Every suite. A further one is a module with a Suite, and its entry here."""

from benchmarks import products

SUITES = {suite.name: suite for suite in (products.SUITE,)}
