"""One page without a network, to look at runs beside each other: content in, one HTML file out."""
