//go:build !failpoints

package failpoint

// Here does nothing, and costs nothing: the compiler leaves nothing of a call. See the package comment.
func Here(Point) {}

// Environment returns nothing.
func Environment() []string { return nil }
