"""Rate and quality measured on whole files, beside conventional encoders."""
