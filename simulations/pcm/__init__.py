"""The experiment on PCM: experts of three two-sided dimensions, merged under stated preferences."""
