"""What saved logits say: scores, calibration, the report. Never needs torch."""
