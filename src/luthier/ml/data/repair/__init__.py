"""Repair of a data file: rows changed and removed for what an audit finds, each with its reason, never in silence.

original -> audit -> changes (decode, clean, mask) -> checks on the changed rows -> removals -> output -> audit
"""
