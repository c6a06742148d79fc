package ctl

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/util/jsonpath"
)

// sortBy sorts by what objects have at a path, as kubectl does: numbers, texts, and quantities by what they mean. What has
// nothing there comes first.
func sortBy[T any](all []T, path string, object func(T) (map[string]any, error)) error {
	path = relaxed(path)
	parser := jsonpath.New("sorting").AllowMissingKeys(true)
	if err := parser.Parse(path); err != nil {
		return err
	}
	type keyed struct {
		key  any // nil for none
		item T
	}
	rows, found := make([]keyed, len(all)), false
	for i, item := range all {
		o, err := object(item)
		if err != nil {
			return err
		}
		results, err := parser.FindResults(o)
		if err != nil {
			return err
		}
		rows[i].item = item
		if len(results) > 0 && len(results[0]) > 0 {
			rows[i].key, found = results[0][0].Interface(), true
		}
	}
	if !found && len(all) > 0 {
		return fmt.Errorf("couldn't find any field with path %q in the list of objects", path)
	}
	var failed error
	slices.SortStableFunc(rows, func(a, b keyed) int {
		order, err := compareValues(a.key, b.key)
		failed = cmp.Or(failed, err)
		return order
	})
	for i := range rows {
		all[i] = rows[i].item
	}
	return failed
}

func compareValues(a, b any) (int, error) {
	switch a := a.(type) {
	case nil:
		if b == nil {
			return 0, nil
		}
		return -1, nil
	case string:
		if b, ok := b.(string); ok {
			return compareTexts(a, b), nil
		}
	case int64:
		switch b := b.(type) {
		case int64:
			return cmp.Compare(a, b), nil
		case float64:
			return cmp.Compare(float64(a), b), nil
		}
	case float64:
		switch b := b.(type) {
		case int64:
			return cmp.Compare(a, float64(b)), nil
		case float64:
			return cmp.Compare(a, b), nil
		}
	default:
		return 0, fmt.Errorf("unsortable type: %T", a)
	}
	if b == nil {
		return 1, nil
	}
	return 0, fmt.Errorf("unsortable: %T beside %T", a, b)
}

// compareTexts takes two quantities for what they mean: 512Mi is less than 1Gi.
func compareTexts(a, b string) int {
	left, err := resource.ParseQuantity(a)
	if err != nil {
		return cmp.Compare(a, b)
	}
	right, err := resource.ParseQuantity(b)
	if err != nil {
		return cmp.Compare(a, b)
	}
	return left.Cmp(right)
}
