//go:build integration

// Package critest runs critest, the conformance suite of the CRI, against a node with the built-in network.
package critest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// knownFailures are the specs that cannot pass here, each with the reason.
var knownFailures = map[string]string{
	"[k8s.io] Image Manager public image with digest should be pulled and removed [Conformance] [Serial]": "only the publisher's registry has the image with that digest",
}

// CRITEST_FOCUS runs the specs that fit a regular expression, and then a failing one is a failure whatever it is.
var focus = os.Getenv("CRITEST_FOCUS")

func TestCritest(t *testing.T) {
	run(t, "all", focus)
}

func TestCritestWebSocket(t *testing.T) {
	only := focus
	if only == "" {
		only = "Streaming" // the flags change nothing else
	}
	run(t, "websocket", only, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
}

// run runs critest once, with a fresh node, and judges its report.
func run(t *testing.T, name, focus string, flags ...string) {
	out := filepath.Join(harness.Root(), "out", "critest", name)
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		t.Fatal(err)
	}
	harness.LeavesNothing(t, "specs", func(t *testing.T) { judge(t, out, focus != "", runSpecs(t, out, focus, flags)) })
}

// runSpecs starts a node and lets critest loose on it. It returns critest's own verdict, which counts for the case that
// there is no report.
func runSpecs(t *testing.T, out, focus string, flags []string) error {
	n := harness.StartNodeWithImages(t)
	log, err := os.Create(filepath.Join(out, "critest.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	endpoint := "unix://" + n.Socket
	args := append([]string{
		"-runtime-endpoint", endpoint, "-image-endpoint", endpoint, "-ginkgo.no-color",
		"-ginkgo.junit-report", filepath.Join(out, reportFile), "-ginkgo.timeout", "3h", // before that go test's own limit ends it
	}, flags...)
	if focus != "" {
		args = append(args, "-ginkgo.focus", focus)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if deadline, ok := t.Deadline(); ok { // leave time for the node's end and the report
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-time.Minute))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, harness.Tool("critest"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+sudoDir(t)+":"+os.Getenv("PATH"))
	err = cmd.Run()
	copyLog(t, n, out)
	return err
}

// sudoDir returns a folder with a program sudo: critest calls it to load AppArmor profiles, and we are root already.
func sudoDir(t *testing.T) string {
	t.Helper()
	env, err := exec.LookPath("env") // runs its arguments, too
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(env, filepath.Join(dir, "sudo")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyLog keeps the daemon's log beside critest's.
func copyLog(t *testing.T, n *harness.Node, out string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
	if err == nil {
		err = os.WriteFile(filepath.Join(out, "berth.log"), data, 0o644)
	}
	if err != nil {
		t.Errorf("the daemon's log: %v", err)
	}
}

const reportFile = "junit.xml"

// A report is what critest writes for CI systems, as far as it is read here.
type report struct {
	Specs []struct {
		Name    string `xml:"name,attr"`
		Status  string `xml:"status,attr"`
		Failure *struct {
			Message string `xml:"message,attr"`
		} `xml:"failure"`
		Skipped *struct {
			Message string `xml:"message,attr"`
		} `xml:"skipped"`
	} `xml:"testsuite>testcase"`
}

func judge(t *testing.T, out string, focused bool, verdict error) {
	data, err := os.ReadFile(filepath.Join(out, reportFile))
	if err != nil {
		t.Fatalf("critest left no report: %v, %v", err, verdict)
	}
	var r report
	if err := xml.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	var passed, failed, expected, skipped int
	var skippedNames []string
	for _, spec := range r.Specs {
		name, isSpec := strings.CutPrefix(spec.Name, "[It] ")
		reason, known := knownFailures[name]
		switch {
		case spec.Status == "passed":
			if isSpec {
				passed++
			}
			if known {
				t.Errorf("known to fail, but it passes now: %s (%s)", name, reason)
			}
		case spec.Status == "skipped" || spec.Status == "pending":
			// Those that skip themselves say why; the others were not asked to run.
			if isSpec && (!focused || spec.Skipped != nil && spec.Skipped.Message != "skipped") {
				skipped++
				skippedNames = append(skippedNames, name)
			}
		case known:
			failed++
			expected++
			t.Logf("fails as expected (%s): %s", reason, name)
		default:
			failed++
			message := ""
			if spec.Failure != nil {
				message = spec.Failure.Message
			}
			t.Errorf("%s %s: %s", spec.Status, spec.Name, message)
		}
	}
	slices.Sort(skippedNames)
	t.Logf("skipped:\n  %s", strings.Join(skippedNames, "\n  "))
	if passed == 0 {
		t.Errorf("nothing ran: %v", verdict)
	}
	fmt.Printf("critest (%s): %d passed, %d failed (%d expected), %d skipped; output in %s\n", filepath.Base(out), passed, failed, expected, skipped, out)
}
