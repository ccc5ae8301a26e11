"""Fits of physical forms to measured times: parameters with confidence, residuals on samples that were held out."""
