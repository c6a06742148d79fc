// Package integration tests berth as a black box on the real kernel: a daemon with folders of its own, the CRI socket,
// crictl, signals, and a registry on loopback. The tests are built with the tag integration, need root, and check at
// their end that nothing is left on the machine.
package integration
