package harness

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Root returns the folder below which bin/ and out/images/ are: BERTH_TEST_ROOT, else the repository.
func Root() string {
	if root := os.Getenv("BERTH_TEST_ROOT"); root != "" {
		return root
	}
	dir, err := os.Getwd()
	if err != nil {
		panic(err) // nothing can be tested from nowhere
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "LICENSE")); err == nil {
			return dir
		}
	}
	panic("the tests run outside of the repository; set BERTH_TEST_ROOT")
}

// Tool returns the path of one of the programs of the tools module.
func Tool(name string) string { return filepath.Join(Root(), "bin", "tools", name) }

// Layout returns the folder of the test images.
func Layout() string { return filepath.Join(Root(), "out", "images") }

// driverConfig lets a whole run of the tests use one cgroup driver: BERTH_TEST_CGROUP_DRIVER.
func driverConfig() string {
	driver := os.Getenv("BERTH_TEST_CGROUP_DRIVER")
	if driver == "" {
		return ""
	}
	return "cgroup:\n  driver: " + driver + "\n"
}

// Patience scales a limit for machines on which all programs are slow: BERTH_TEST_SLOWNESS is a factor.
func Patience(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv("BERTH_TEST_SLOWNESS"))
	if err != nil || factor < 1 {
		return d
	}
	return d * time.Duration(factor)
}

// Eventually asks again until ok returns nil, and fails the test with the last error after the limit. It is for what a
// black box gives no other sign of.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience(limit))
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, Patience(limit), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
