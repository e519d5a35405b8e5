"""From notebooks to a site: chapters executed, pages made from data, the site built, checked and published."""
