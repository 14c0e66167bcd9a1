# frozen_string_literal: true

require ARGV[1]

def show(*fields)
  puts(fields.map { |field| field.to_s.split.join(' ') }.join("\t"))
end

def photo(name)
  File.binread(File.join(ARGV[0], "#{name}.jpg"))
end

db = PG.connect
%w[cat cat-cropped rocket dahlia].each { |name| show('added', add(db, name, photo(name))) }
show('bad', add(db, 'notes', 'not an image'))
show('unsupported', add(db, 'drawing', "<svg xmlns='http://www.w3.org/2000/svg'/>"))
begin
  add(db, 'forbidden', photo('cat'))
rescue PG::Error => e
  show('other', e.result.error_field(PG::PG_DIAG_SQLSTATE))
end
search(db, 'a rocket on its way to space', 2).each { |row| show('found', row['title']) }
similar(db, photo('cat-mirrored'), 1).each { |row| show('similar', row['title']) }
groups(db).each { |row| show('group', row['size'], row['title']) }
db.close
