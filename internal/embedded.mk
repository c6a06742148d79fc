# Small programs in C that berth has embedded: internal/NAME/NAME.c makes NAME_amd64 and NAME_arm64 beside it. They are
# committed, so that a build of berth needs no C compiler for another architecture. `make NAME` makes them again; the result
# depends on the compiler alone, and `make NAME-check` makes them aside with Debian 12's and compares.
#
# For the Makefile of the project: include internal/embedded.mk, then internal/NAME/Makefile, which says what flags the program
# has besides these, and ends with $(eval $(call embedded,NAME)).

EMBEDDED_CC_amd64 ?= x86_64-linux-gnu-gcc
EMBEDDED_CC_arm64 ?= aarch64-linux-gnu-gcc
# No unwind tables, no build ID: nothing that is not run, and nothing that differs from build to build.
EMBEDDED_FLAGS := -Os -std=gnu11 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables \
	-fno-ident -fno-pie -no-pie -nostdlib -static -s -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code
EMBEDDED_FLAGS_amd64 := -fcf-protection=none

# $(call embedded_cc,NAME,ARCH,OUTPUT)
embedded_cc = $(EMBEDDED_CC_$(2)) $(EMBEDDED_FLAGS) $(EMBEDDED_FLAGS_$(2)) $($(1)_FLAGS) $($(1)_FLAGS_$(2)) -o $(3) internal/$(1)/$(1).c

define embedded
.PHONY: $(1) $(1)-check
$(1):
	$(call embedded_cc,$(1),amd64,internal/$(1)/$(1)_amd64)
	$(call embedded_cc,$(1),arm64,internal/$(1)/$(1)_arm64)
	chmod 0755 internal/$(1)/$(1)_amd64 internal/$(1)/$(1)_arm64

$(1)-check:
	tmp=$$$$(mktemp); trap 'rm -f '$$$$tmp EXIT; \
	for arch in amd64 arm64; do case $$$$arch in \
		amd64) cc=$(EMBEDDED_CC_amd64) ;; \
		arm64) cc=$(EMBEDDED_CC_arm64) ;; \
	esac; \
	if ! command -v $$$$cc >/dev/null; then echo "$(1)-check: no $$$$cc, $$$$arch is NOT checked" >&2; continue; fi; \
	case $$$$arch in \
		amd64) $(call embedded_cc,$(1),amd64,$$$$tmp) ;; \
		arm64) $(call embedded_cc,$(1),arm64,$$$$tmp) ;; \
	esac; \
	cmp $$$$tmp internal/$(1)/$(1)_$$$$arch; done
endef
