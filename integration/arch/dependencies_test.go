package arch

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDependenciesAreExplained holds docs/dependencies.md against what the modules require directly.
func TestDependenciesAreExplained(t *testing.T) {
	const doc = "docs/dependencies.md"
	explained, required := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(read(t, doc), -1) {
		explained[m[1]] = true
	}
	for _, file := range []string{"go.mod", "integration/tools/go.mod", "integration/tools/kubelet/go.mod"} {
		for _, module := range direct(read(t, file)) {
			if !explained[module] {
				t.Errorf("%s requires %s, and %s has no line that says what for", file, module, doc)
			}
			required[module] = true
		}
	}
	for module := range explained {
		if required[module] {
			continue
		}
		t.Errorf("%s explains %s, which nothing requires any more", doc, module)
	}
}

// direct returns the modules that a go.mod requires, but for the indirect ones.
func direct(gomod string) []string {
	var modules []string
	inside := false
	for line := range strings.Lines(gomod) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inside = true
			continue
		case line == ")":
			inside = false
		}
		single, isSingle := strings.CutPrefix(line, "require ")
		if isSingle {
			line = single
		}
		fields := strings.Fields(line)
		if (inside || isSingle) && len(fields) >= 2 && strings.HasPrefix(fields[1], "v") && !strings.HasSuffix(line, "// indirect") {
			modules = append(modules, fields[0])
		}
	}
	return modules
}

func TestDirect(t *testing.T) {
	got := direct("module m\n\ngo 1.26.8\n\nrequire example.com/one v1.0.0\n\nrequire (\n\t// a comment\n\texample.com/two v0.1.0\n\texample.com/three v0.1.0 // indirect\n)\n")
	if strings.Join(got, " ") != "example.com/one example.com/two" {
		t.Errorf("got %q", got)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
