package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// A series is what was measured of one target in one case, in the order it came.
type series struct {
	Target  string    `json:"target"`
	Samples []float64 `json:"samples"`
}

// A table is one case: the same thing measured of several targets.
type table struct {
	Name   string   `json:"name"`
	What   string   `json:"what"`
	Unit   string   `json:"unit"`
	More   bool     `json:"moreIsBetter,omitempty"`
	Series []series `json:"series"`
	Notes  []string `json:"notes,omitempty"`
}

// A report is a whole run, as it is written in JSON.
type report struct {
	Time     string            `json:"time"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Tables   []*table          `json:"tables"`
}

func (t *table) add(target string, sample float64) {
	for i := range t.Series {
		if t.Series[i].Target == target {
			t.Series[i].Samples = append(t.Series[i].Samples, sample)
			return
		}
	}
	t.Series = append(t.Series, series{target, []float64{sample}})
}

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// quantile returns the sample below which the part q of all lies.
func quantile(samples []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low+1 == len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// print writes the table with the ratio of each berth to each target.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s (%s)\n", t.Name, t.What, t.Unit)
	var ours []series
	for _, s := range t.Series {
		if strings.HasPrefix(s.Target, "berth") {
			ours = append(ours, s)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "runtime\tmedian\tp10\tp90\tmin\tn\t")
	for _, o := range ours {
		fmt.Fprintf(tw, "%s/it\t", o.Target)
	}
	fmt.Fprintln(tw)
	for _, s := range t.Series {
		median := quantile(s.Samples, 0.5)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t", s.Target, short(median), short(quantile(s.Samples, 0.1)),
			short(quantile(s.Samples, 0.9)), short(quantile(s.Samples, 0)), len(s.Samples))
		for _, o := range ours {
			fmt.Fprintf(tw, "%s\t", ratio(quantile(o.Samples, 0.5), median))
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // to standard output; who has closed it does not want it
	for _, n := range t.Notes {
		fmt.Fprintln(w, "  "+n)
	}
}

func ratio(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", a/b)
}

// short writes a number with three significant digits at least.
func short(x float64) string {
	switch {
	case x >= 100 || x == 0:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func (r *report) write(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
