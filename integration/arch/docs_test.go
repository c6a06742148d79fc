package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	docLink    = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	docGoFile  = regexp.MustCompile("`([a-z0-9_/*-]+\\.go)`")
	docPackage = regexp.MustCompile("`((?:cmd|cri|runtime|network|cgroups|internal|integration)/[a-z0-9_/-]+)`")
)

var (
	docTest  = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
)

// TestDocsNameTestsThatExist finds tests that the table of traps names and that are not there any more.
func TestDocsNameTestsThatExist(t *testing.T) {
	tests := map[string]bool{}
	for _, file := range goFiles(t) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunc.FindAllStringSubmatch(string(source), -1) {
			tests[m[1]] = true
		}
	}
	data, err := os.ReadFile("../../docs/traps.md")
	if err != nil {
		t.Fatal(err)
	}
	named := docTest.FindAllStringSubmatch(string(data), -1)
	for _, m := range named {
		if !tests[m[1]] {
			t.Errorf("docs/traps.md names %s, which no test is", m[1])
		}
	}
	if len(named) == 0 {
		t.Error("docs/traps.md names no tests")
	}
}

// TestDocsNameWhatExists finds links, files and packages in the documentation that are not there any more.
func TestDocsNameWhatExists(t *testing.T) {
	sources := goFiles(t)
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob("../../docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append(append(docs, decisions...), "../../README.md") {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range docLink.FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
		for _, m := range docGoFile.FindAllStringSubmatch(string(data), -1) {
			if !strings.HasPrefix(m[1], "pkg/") && !endsOne(sources, m[1]) { // pkg/ is Kubernetes'
				t.Errorf("%s names %s, which no file is", doc, m[1])
			}
		}
		for _, m := range docPackage.FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", doc, m[1], err)
			}
		}
	}
}

func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// endsOne reports whether the path of a file ends in name, which may have a star.
func endsOne(files []string, name string) bool {
	pattern := regexp.MustCompile("/" + strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, "[^/]*") + "$")
	for _, file := range files {
		if pattern.MatchString(file) {
			return true
		}
	}
	return false
}
