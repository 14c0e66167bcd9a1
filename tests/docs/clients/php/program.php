<?php
require $argv[2];

function show(mixed ...$fields): void
{
    echo implode("\t", array_map(fn ($field) => preg_replace('/\s+/', ' ', trim((string) $field)), $fields)), "\n";
}

$photo = fn (string $name): string => file_get_contents("{$argv[1]}/$name.jpg");
$db = new PDO(sprintf('pgsql:host=%s;port=%s;user=%s;dbname=%s', ...array_map('getenv', ['PGHOST', 'PGPORT', 'PGUSER', 'PGDATABASE'])));
foreach (['cat', 'cat-cropped', 'rocket', 'dahlia'] as $name) {
    show('added', add($db, $name, $photo($name)));
}
show('bad', add($db, 'notes', 'not an image'));
show('unsupported', add($db, 'drawing', "<svg xmlns='http://www.w3.org/2000/svg'/>"));
try {
    add($db, 'forbidden', $photo('cat'));
} catch (PDOException $error) {
    show('other', $error->errorInfo[0]);
}
foreach (search($db, 'a rocket on its way to space', 2) as $row) {
    show('found', $row['title']);
}
foreach (similar($db, $photo('cat-mirrored'), 1) as $row) {
    show('similar', $row['title']);
}
foreach (groups($db) as $row) {
    show('group', $row['size'], $row['title']);
}
