"""Today's code on what earlier versions have stored.

kept/2026-11-25    by commit 5dd39c1, with the packages of 2026-11-29: from before phases had their name, when model
                   cards had `decode_gib`, records no version, and checkpoints no checksum
kept/2026-11-29    by the first commit that stores versions and checksums
"""
