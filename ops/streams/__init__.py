"""Floor 6: ParScale: P streams over a decoder, trained, measured, saved, and the law they follow."""
