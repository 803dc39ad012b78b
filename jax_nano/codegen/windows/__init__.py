"""Operands that are windows over an image: they overlap themselves, and are zero beyond its bounds.

reference.py    such an operand in memory
rows.py         its rows as microkernels read them in place
gather.py       its panels, packed
channelwise.py  narrow groups of channels in the lanes, with a microkernel of its own
placewise.py    neighbouring places of one channel in the lanes, likewise; taps.py serves both
"""
