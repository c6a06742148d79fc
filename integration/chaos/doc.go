// Package chaos kills the daemon, the keeper and both of them at every step of every operation, and at random moments, and
// proves that nothing is lost and nothing is left over. It has no code but tests, which need the tag integration and the
// programs of make failpoints.
package chaos
