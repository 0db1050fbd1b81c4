"""The parts of gpu.py: functions of a `Setting` that return what they measured, as JSON values."""
