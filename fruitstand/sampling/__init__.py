"""Records of a server's traffic: statistics of some images and, if asked for, the images themselves."""
