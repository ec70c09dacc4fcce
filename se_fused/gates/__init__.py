"""What the gates of a model's SE blocks do: recorded while it runs, summed up, plotted."""

from se_fused.gates.record import GateRecord, record_gates

__all__ = ["GateRecord", "record_gates"]
