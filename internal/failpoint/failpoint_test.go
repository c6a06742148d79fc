package failpoint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// constants returns the names of the points' constants by their values, and fails for one without a comment.
func constants(t *testing.T) map[string]Point {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Point{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Point" {
			return true
		}
		name := spec.Names[0].Name
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(spec.Doc.Text(), name+": ") {
			t.Errorf("%s: its comment does not say what is done when it is reached", name)
		}
		found[name] = Point(value)
		return true
	})
	return found
}

func TestEveryPointIsListed(t *testing.T) {
	listed := map[Point]bool{}
	for _, p := range Points {
		if listed[p] {
			t.Errorf("%s is listed twice", p)
		}
		listed[p] = true
	}
	found := constants(t)
	if len(found) != len(Points) {
		t.Errorf("%d constants, %d points", len(found), len(Points))
	}
	for name, p := range found {
		if !listed[p] {
			t.Errorf("%s is not in Points, or another constant has its name", name)
		}
	}
}

// Every constant stands in the code of the package that its name begins with, as the argument of Here, and Here has no
// other arguments.
func TestEveryPointIsInItsPackage(t *testing.T) {
	found := constants(t)
	used := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "out", "integration", "failpoint"}, d.Name()):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		for _, name := range calls(t, path) {
			p, ok := found[name]
			if !ok {
				t.Errorf("%s: Here has the argument %q, which is no constant of this package", path, name)
				continue
			}
			used[name] = true
			if pkg, _, _ := strings.Cut(string(p), "."); pkg != packageOf(path) {
				t.Errorf("%s: %q is a point of another package", path, p)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range found {
		if !used[name] {
			t.Errorf("%s is nowhere in the code", name)
		}
	}
}

// packageOf returns the name of the folder, or that of the one above for a folder "server".
func packageOf(path string) string {
	dir := filepath.Dir(path)
	if filepath.Base(dir) == "server" {
		dir = filepath.Dir(dir)
	}
	return filepath.Base(dir)
}

// calls returns the arguments of the calls of Here in a file; "" stands for what is not a constant of this package.
func calls(t *testing.T, path string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || selected(call.Fun) != "Here" {
			return true
		}
		args = append(args, selected(call.Args[0]))
		return true
	})
	return args
}

// selected returns X of failpoint.X, "" for any other expression.
func selected(e ast.Expr) string {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
		return ""
	}
	return sel.Sel.Name
}
