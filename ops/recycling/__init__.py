"""Turning a decoder into parallel streams: data, training, measuring, saving."""
