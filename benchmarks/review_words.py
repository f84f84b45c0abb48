"""The words that `reviews.py` makes sentences of: templates, what fills them, and other languages."""

from __future__ import annotations

import re

_SLOTS = """
adjective: sturdy flimsy quiet noisy bright dull heavy light smooth rough sleek clumsy handy bulky cheap fancy soft
  stiff warm cold sharp blunt clever simple tidy messy fast slow solid shaky neat odd plain pretty gentle harsh
  reliable fragile compact roomy elegant ugly fresh stale precise sloppy generous stingy modest bold
adverb: quite rather really hardly almost nearly truly simply barely clearly mostly partly fairly surprisingly
  honestly frankly certainly probably sadly happily oddly finally usually often rarely always sometimes
thing: kettle lamp chair jacket blender phone keyboard backpack toaster tent drill mattress speaker camera watch
  heater bottle monitor printer scooter guitar racket vacuum grill pillow desk router charger headset helmet
  stroller mixer fan ladder pump cooler tripod projector easel saddle kayak telescope shaver whistle compass
part: handle lid cable hinge button zipper strap screen motor battery sole seam wheel filter switch frame cover
  spring hook valve plug dial latch grip cap blade pedal nozzle bracket lens collar lining socket gasket
verb: rattled squeaked cracked held lasted bent faded shrank stretched loosened jammed clicked buzzed leaked peeled
  snapped warped rusted shone glowed dimmed slipped stuck wobbled hummed overheated cooled charged
person: Anna Boris Carla David Elena Farid Greta Hugo Irene Jonas Karim Lydia Marco Nadia Oskar Paula Quentin Rosa
  Stefan Tanja Ulrich Vera Walter Xenia Yusuf Zoe
kin: sister brother mother father cousin neighbour colleague boss roommate uncle aunt daughter son friend
  grandmother nephew teacher landlord
place: kitchen garden office garage attic cellar balcony bathroom hallway workshop school beach cabin boat train
  studio gym library tent car shed terrace
time: day week month year weekend evening morning summer winter holiday season fortnight
number: two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty
colour: red blue green black white grey brown purple orange yellow silver beige pink turquoise
action: cooking cleaning hiking reading painting fishing camping gaming commuting gardening travelling baking sewing
  running cycling swimming studying climbing packing
shop: seller store courier warehouse website market dealer outlet hotline counter importer
feel: love like hate enjoy regret adore dislike recommend trust doubt praise miss admire despise
"""
SLOTS: dict[str, list[str]] = {
    name: words.split() for name, _, words in (entry.partition(":") for entry in re.split(r"\n(?=\w)", _SLOTS.strip()))
}

_TEMPLATES = """
my _kin bought this _adjective _thing for _action in _place
after _number _time s the _part _verb and _adverb _verb again
i _adverb _feel how _adjective the _part feels while _action
the _colour _thing looked _adjective but its _part _verb within one _time
_person from the _shop answered _adverb and sent another _part
compared with my old _thing this one is _adverb _adjective and _adjective
we use it every _time for _action near the _place
delivery took _number _time s because the _shop lost one _part
at that price _adverb nobody can expect a _adjective _part
the manual says _action is fine yet our _part _verb
setting up took _number minutes with a _adjective _part from _person
its _adjective _part and _colour finish suit our _place
i would _feel it more without such a _adjective _part
for _action on a _adjective _time nothing beats this _thing
_person and my _kin _adverb _feel the _adjective sound it makes
do not take it _action since one _part _verb near _place
the box held _number spare _part s plus a _colour pouch
sadly the _shop charged _number dollars for a _adjective _part
in the _place it _verb _adverb less than a _adjective _thing
my _kin says _person would _feel it too for _action
cleaning the _part is _adverb _adjective once you remove the _part
on the _adjective side the _thing fits any _place or _place
its weight surprised _person who expected a _adjective _colour model
last _time the _part _verb while _person was busy _action
they replaced the _adjective _thing after _number calls to the _shop
nothing _verb so far though _action every _time is _adjective
our _place smells _adjective since the _part got warm during _action
i returned the first _thing because its _colour _part _verb
even a _adjective beginner like my _kin can master _action now
the warranty covers _number _time s but not the _adjective _part
both _kin and _kin _adverb _feel this _colour version most
you hear the _part when _action in a _adjective _place
what i _feel most is the _adjective _colour _part up front
between _action and _action it never _verb in my _place
"""
SENTENCES: list[list[str]] = [line.replace("_time s", "_time").split() for line in _TEMPLATES.strip().splitlines()]

FOREIGN: dict[str, list[str]] = {
    "de": [
        "Der Wasserkocher steht seit drei Wochen in unserer Küche und macht keinen Lärm.",
        "Meine Schwester hat ihn zum Geburtstag bekommen und ist sehr zufrieden damit.",
        "Leider war der Deckel nach kurzer Zeit locker, aber der Händler schickte sofort Ersatz.",
        "Für diesen Preis kann man wirklich nichts Besseres erwarten.",
        "Die Lieferung kam pünktlich an und die Verpackung war unbeschädigt.",
        "Wir benutzen das Gerät jeden Morgen und würden es wieder kaufen.",
        "Die Anleitung ist schwer zu verstehen, weil viele Bilder fehlen.",
    ],
    "fr": [
        "La bouilloire est dans notre cuisine depuis trois semaines et ne fait aucun bruit.",
        "Ma sœur l'a reçue pour son anniversaire et elle en est très contente.",
        "Malheureusement le couvercle bougeait vite, mais le vendeur a envoyé une pièce neuve.",
        "Pour ce prix on ne peut vraiment pas attendre mieux.",
        "La livraison est arrivée à l'heure et le carton était intact.",
        "Nous utilisons cet appareil chaque matin et nous le rachèterions.",
        "La notice est difficile à comprendre car il manque beaucoup d'images.",
    ],
    "es": [
        "La tetera lleva tres semanas en nuestra cocina y no hace ningún ruido.",
        "Mi hermana la recibió por su cumpleaños y está muy contenta con ella.",
        "Por desgracia la tapa se aflojó pronto, pero el vendedor envió otra enseguida.",
        "Por este precio no se puede esperar nada mejor.",
        "El envío llegó a tiempo y la caja no tenía ningún daño.",
        "Usamos el aparato todas las mañanas y lo compraríamos otra vez.",
        "El manual es difícil de entender porque faltan muchas imágenes.",
    ],
}
