"""fastloop: diffusion and flow policies in closed loop, several times faster, with proof."""
