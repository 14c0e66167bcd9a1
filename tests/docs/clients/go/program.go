package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4/pgxpool"
)

func show(fields ...string) {
	for i, field := range fields {
		fields[i] = strings.Join(strings.Fields(field), " ")
	}
	fmt.Println(strings.Join(fields, "\t"))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	ctx := context.Background()
	pool, err := pgxpool.Connect(ctx, "")
	check(err)
	defer pool.Close()
	photo := func(name string) []byte {
		file, err := os.ReadFile(os.Args[1] + "/" + name + ".jpg")
		check(err)
		return file
	}
	add := func(label, title string, file []byte) {
		reason, err := Add(ctx, pool, title, file)
		check(err)
		show(label, reason)
	}
	for _, name := range []string{"cat", "cat-cropped", "rocket", "dahlia"} {
		add("added", name, photo(name))
	}
	add("bad", "notes", []byte("not an image"))
	add("unsupported", "drawing", []byte("<svg xmlns='http://www.w3.org/2000/svg'/>"))
	_, err = Add(ctx, pool, "forbidden", photo("cat"))
	var failed *pgconn.PgError
	if errors.As(err, &failed) {
		show("other", failed.Code)
	}
	found, err := Search(ctx, pool, "a rocket on its way to space", 2)
	check(err)
	for _, row := range found {
		show("found", row.Title)
	}
	found, err = Similar(ctx, pool, photo("cat-mirrored"), 1)
	check(err)
	for _, row := range found {
		show("similar", row.Title)
	}
	groups, err := Groups(ctx, pool)
	check(err)
	for _, row := range groups {
		show("group", fmt.Sprint(row.Size), row.Title)
	}
}
