// Renders the chart with Go's own template engine and the functions of Helm that the chart uses.
//
//	go run render.go CHART RELEASE NAMESPACE < VALUES.json
//
// VALUES.json holds the values of the chart with those of the case merged into them. Used by tests/deploy/chart.py where Helm is not
// at hand; a function of Helm that is not here fails the rendering.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"text/template"
)

func main() {
	chart, release, namespace := os.Args[1], os.Args[2], os.Args[3]
	var values map[string]any
	must(json.NewDecoder(os.Stdin).Decode(&values))
	values = whole(values).(map[string]any)
	var about map[string]any
	must(json.Unmarshal([]byte(os.Getenv("CHART_JSON")), &about))
	data := map[string]any{
		"Values":  values,
		"Chart":   about,
		"Release": map[string]any{"Name": release, "Namespace": namespace, "Service": "Helm", "IsInstall": true},
	}
	all := template.New("chart").Option("missingkey=zero")
	all.Funcs(functions(all))
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	must(err)
	sort.Strings(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(err)
		_, err = all.New(filepath.Base(file)).Parse(string(text))
		must(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		var out bytes.Buffer
		must(all.ExecuteTemplate(&out, name, data))
		if strings.HasPrefix(name, "_") || strings.HasSuffix(name, ".txt") {
			continue
		}
		if text := strings.ReplaceAll(out.String(), "<no value>", ""); strings.TrimSpace(text) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, strings.TrimSpace(text))
		}
	}
}

// number is a value as a number, as Helm casts it: texts are parsed.
func number(given any) float64 {
	found, err := strconv.ParseFloat(fmt.Sprint(given), 64)
	must(err)
	return found
}

func functions(all *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var out bytes.Buffer
			err := all.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
		"default": func(other, given any) any {
			if isEmpty(given) {
				return other
			}
			return given
		},
		"required": func(message string, given any) (any, error) {
			if isEmpty(given) {
				return nil, fmt.Errorf("%s", message)
			}
			return given, nil
		},
		"dict":       func() map[string]any { return map[string]any{} },
		"list":       func(given ...any) []any { return given },
		"quote":      func(given any) string { return fmt.Sprintf("%q", fmt.Sprint(given)) },
		"trim":       strings.TrimSpace,
		"int":        func(number int) int { return number },
		"sub":        func(from, number int) int { return from - number },
		"trunc":      func(length int, text string) string { return text[:min(length, len(text))] },
		"add": func(numbers ...any) int64 {
			sum := int64(0)
			for _, one := range numbers {
				sum += int64(number(one))
			}
			return sum
		},
		"max": func(numbers ...any) int64 {
			most := math.Inf(-1)
			for _, one := range numbers {
				most = math.Max(most, number(one))
			}
			return int64(most)
		},
		"ceil":       func(given any) float64 { return math.Ceil(number(given)) },
		"trimSuffix": func(suffix, text string) string { return strings.TrimSuffix(text, suffix) },
		"nindent": func(spaces int, text string) string {
			space := strings.Repeat(" ", spaces)
			return "\n" + space + strings.ReplaceAll(text, "\n", "\n"+space)
		},
		"toYaml": func(given any) string { return strings.TrimPrefix(written(given, ""), "\n") },
	}
}

func isEmpty(given any) bool {
	switch one := given.(type) {
	case nil:
		return true
	case string:
		return one == ""
	case bool:
		return !one
	case int64:
		return one == 0
	case float64:
		return one == 0
	case map[string]any:
		return len(one) == 0
	case []any:
		return len(one) == 0
	}
	return false
}

// Numbers without a fraction as whole ones, as Helm shows them.
func whole(given any) any {
	switch one := given.(type) {
	case float64:
		if one == float64(int64(one)) {
			return int64(one)
		}
	case map[string]any:
		for key, value := range one {
			one[key] = whole(value)
		}
	case []any:
		for place, value := range one {
			one[place] = whole(value)
		}
	}
	return given
}

// YAML in lines; a mapping or a list begins with a line break, for what stands before it.
func written(given any, indent string) string {
	var out strings.Builder
	switch one := given.(type) {
	case map[string]any:
		if len(one) == 0 {
			return "{}"
		}
		keys := make([]string, 0, len(one))
		for key := range one {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			fmt.Fprintf(&out, "\n%s%s: %s", indent, key, written(one[key], indent+"  "))
		}
	case []any:
		if len(one) == 0 {
			return "[]"
		}
		for _, value := range one {
			text := written(value, indent+"  ")
			fmt.Fprintf(&out, "\n%s- %s", indent, strings.TrimPrefix(text, "\n"+indent+"  "))
		}
	default:
		text, err := json.Marshal(given)
		must(err)
		return string(text)
	}
	return out.String()
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
