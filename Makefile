# Aliases for those who type make. The scripts do the work, and need no make.
.PHONY: setup dev test verify fix acceptance
setup dev test verify fix acceptance:
	./ci/$@
