"""Speed against named peers: ratios from runs that take turns, since machines drift."""
