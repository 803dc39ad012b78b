"""AMX machine code on any x86-64 machine with AVX-512.

emulator.py prepares the process; csrc/ is what it installs where the processor has no AMX: decoder, tiles, executor,
handler. model.py defines the tile products for the tests of the emulator, which run natively too where AMX is there.
"""
