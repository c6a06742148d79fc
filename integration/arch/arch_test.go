package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/berth-node/berth/"

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath string
	Doc        string
	Standard   bool
	Imports    []string
	CgoFiles   []string
	GoFiles    []string
}

func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-tags", "seccomp", "-json=ImportPath,Doc,Standard,Imports,CgoFiles,GoFiles"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // what a build without cgo would hide is to be seen
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// covers reports whether pattern is path, or ends in /... and is above it.
func covers(pattern, path string) bool {
	if base, deep := strings.CutSuffix(pattern, "/..."); deep {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func coversAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, path) })
}

// ruleFor returns the rule with the longest package that fits.
func ruleFor(path string) (Rule, bool) {
	var best Rule
	for _, r := range Rules {
		if covers(r.Package+"/...", path) && len(r.Package) > len(best.Package) {
			best = r
		}
	}
	return best, best.Package != ""
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range goList(t, "./...") {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		rule, ok := ruleFor(path)
		if !ok {
			t.Errorf("%s has no place in the table of integration/arch", path)
			continue
		}
		for _, imported := range p.Imports {
			if inner, ours := strings.CutPrefix(imported, module); ours && !coversAny(rule.May, inner) {
				t.Errorf("%s imports %s; %s may import %q: %s", path, inner, rule.Package, rule.May, rule.Why)
			}
			for _, b := range Bans {
				if covers(b.Prefix+"/...", imported) && !coversAny(b.Except, path) {
					t.Errorf("%s imports %s, which only %q may: %s", path, imported, b.Except, b.Why)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range goList(t, "./...") {
		if len(p.GoFiles)+len(p.CgoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// What a program must not have linked, not even by way of another package.
func TestProgramsLinkOnlyWhatTheyMay(t *testing.T) {
	for program, banned := range map[string][]string{
		"cmd/berth": {
			module + "runtime/launch", "github.com/opencontainers/runc",
		},
		"cmd/berth-keeper": {
			"github.com/opencontainers/runc", "google.golang.org/grpc", "k8s.io", "sigs.k8s.io", "github.com/containerd/containerd",
			module + "runtime/launch", module + "network", module + "cri", module + "runtime/image",
		},
		"cmd/berth-launch": {
			"google.golang.org/grpc", "k8s.io", "github.com/containerd/containerd", module + "network", module + "cri",
		},
	} {
		for _, p := range goList(t, "-deps", "./"+program) {
			for _, b := range banned {
				if covers(b+"/...", p.ImportPath) {
					t.Errorf("%s links %s", program, p.ImportPath)
				}
			}
			if program != "cmd/berth-launch" && len(p.CgoFiles) > 0 && !p.Standard {
				t.Errorf("%s links %s, which is cgo", program, p.ImportPath)
			}
		}
	}
}

func TestLongestRuleDecides(t *testing.T) {
	for path, want := range map[string]string{
		"runtime": "runtime", "runtime/keeper": "runtime/keeper", "runtime/keeper/server": "runtime/keeper/server",
		"internal/errdefs": "internal", "cmd/berth-keeper": "cmd/berth-keeper", "network/netns": "network/netns",
	} {
		if r, ok := ruleFor(path); !ok || r.Package != want {
			t.Errorf("%s: rule of %s, want %s", path, r.Package, want)
		}
	}
	if r, ok := ruleFor("runtimes"); ok {
		t.Errorf("runtimes falls under the rule of %s", r.Package)
	}
}
