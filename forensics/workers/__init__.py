"""Where work is done besides here: processes of this machine, or a cluster. `forensics.fanout` gives it to them."""
